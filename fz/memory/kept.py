"""Where what a run computed is kept: tensors in files, whole and checked, and inversion's queries and keys in RAM or in
such files.

A file appears whole (written beside, then renamed), so that two runs that write the same thing at once, or one that is
killed, leave nothing half done. It carries a checksum; one that is damaged is said so and counts as missing.
"""

import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fz.attention import QK
from fz.errors import FzError
from fz.source import Store
from fz.tensors import write_safetensors

Say = Callable[[str], None]
# writes that may wait: each holds one step's queries and keys
PENDING = 2


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names, dtypes, shapes and bytes."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode(), crc)
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file with their checksum. Raises FzError where that is not possible."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_safetensors(path, tensors, {"crc32": checksum(tensors)}, "cache")


def read_tensors(path: Path, say: Say) -> dict[str, Tensor] | None:
    """The tensors of a file that `write_tensors` wrote; None where there is none or where it is damaged, which is
    said.
    """
    if not path.exists():
        return None
    if not path.is_file():
        say(f"{path} is damaged (it is no file); what it held is computed again")
        return None
    try:
        with safe_open(path, "pt") as file:
            # in memory of their own: oneDNN sums otherwise where a tensor does not begin at a multiple of 64 bytes, as
            # in a file, and what is read is to give the bits of what was computed
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            expected = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError, ValueError) as error:
        say(f"{path} is damaged ({str(error).splitlines()[0]}); what it held is computed again")
        return None
    if checksum(tensors) != expected:
        say(f"{path} is damaged (its checksum differs); what it held is computed again")
        return None
    return tensors


class StepLog:
    """One file for each step that is done, in a folder: what a run that was interrupted goes on from."""

    def __init__(self, folder: Path, say: Say):
        self.folder, self.say = folder, say
        self.failed = False

    def path(self, step: int) -> Path:
        return self.folder / f"{step:04d}.safetensors"

    def put(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a step. Where that fails (a full disk) it is said once, and the run goes on without."""
        if self.failed:
            return
        try:
            write_tensors(self.path(step), tensors)
        except FzError as error:
            self.failed = True
            self.say(f"{error} The run goes on, but cannot be resumed.")

    def get(self, step: int) -> dict[str, Tensor] | None:
        return read_tensors(self.path(step), self.say)


class KeptInMemory(Store):
    """Queries and keys on the model's device ('memory')."""

    def __init__(self):
        self.steps: dict[int, QK] = {}

    def put(self, t: int, qk: QK) -> None:
        self.steps[t] = qk

    def get(self, t: int) -> QK | None:
        return self.steps.get(t)

    def has(self, t: int) -> bool:
        return t in self.steps


class KeptOnDisk(Store):
    """Queries and keys in files, one a timestep ('disk'): written behind by a thread, read ahead by another, from noisy
    to clean.
    """

    def __init__(self, folder: Path, timesteps: tuple[int, ...], device: torch.device, say: Say):
        self.folder, self.device, self.say = folder, device, say
        self.failed = False
        self.following = dict(zip(timesteps, timesteps[1:], strict=False))
        self.writer, self.reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.writes: list[Future] = []
        self.ahead: dict[int, Future] = {}

    def path(self, t: int) -> Path:
        return self.folder / f"{t:04d}.safetensors"

    def put(self, t: int, qk: QK) -> None:
        tensors = {f"{site}#{i}": x.cpu() for site, of in qk.items() for i, x in enumerate(of)}
        self.flush(PENDING - 1)
        self.writes.append(self.writer.submit(write_tensors, self.path(t), tensors))

    def get(self, t: int) -> QK | None:
        self.flush()
        tensors = self.ahead.pop(t, None) or self.reader.submit(read_tensors, self.path(t), self.say)
        if t in self.following:
            ahead = self.following[t]
            self.ahead[ahead] = self.reader.submit(read_tensors, self.path(ahead), self.say)
        tensors = tensors.result()
        if tensors is None:
            return None
        qk: dict[str, tuple[Tensor, ...]] = {}
        for name in sorted(tensors):
            site = name.rpartition("#")[0]
            qk[site] = (*qk.get(site, ()), tensors[name].to(self.device))
        return qk

    def has(self, t: int) -> bool:
        return self.path(t).exists()

    def flush(self, pending: int = 0) -> None:
        """Wait until no more than so many writes are pending. What could not be written is computed again: said once,
        no error.
        """
        while len(self.writes) > pending:
            try:
                self.writes.pop(0).result()
            except FzError as error:
                if not self.failed:
                    self.say(f"{error} What is missing is computed again.")
                self.failed = True

    def close(self) -> None:
        """End the threads, once all is written; what could not be is said."""
        self.flush()
        self.writer.shutdown()
        self.reader.shutdown(cancel_futures=True)
