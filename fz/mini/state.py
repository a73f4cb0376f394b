"""What a training keeps between runs: everything in one file, and of the UNet's the averaged weights in small ones.

DIR/training.pt is written whole and goes on to the bit. DIR/averages-N.safetensors are what a model is made of,
float16, at most 15 MB each, so that they travel where the whole state cannot; a training that finds them alone starts
from them.
"""

import contextlib
import csv
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fz import errors
from fz.errors import FzError
from fz.tensors import write_pt, write_safetensors

RATE, WARM_UP, AVERAGE = 2e-4, 200, 0.999
SAVE_EVERY = 180  # seconds
LARGEST = 15_000_000  # bytes of a file of averages


def undamaged(path: Path) -> contextlib.AbstractContextManager[None]:
    """What a training wrote is read in the block. Raises FzError where it is damaged or does not fit."""
    return errors.undamaged("state", path, "Remove it, so that it is made anew, or pass another --state.")


class Resumable:
    """Modules, optimiser, averages, random numbers and how much has been done, in one file. Goes on where that ends."""

    rate = RATE
    counts = ("seconds", "steps")

    def __init__(self, path: Path, modules: dict[str, nn.Module], device: str = "cpu"):
        self.path, self.modules = path, nn.ModuleDict(modules).to(device)
        self.seconds, self.steps = 0.0, 0
        self.optimiser = torch.optim.AdamW(
            self.modules.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.shadow = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        if self.path.exists():
            with undamaged(self.path):
                self.restore(torch.load(self.path, weights_only=True, map_location=device))

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self.modules.load_state_dict(saved["modules"])
        self.optimiser.load_state_dict(in_order(saved["optimiser"], list(saved["modules"]), self.names()))
        self.shadow = saved["shadow"]
        for count in self.counts:
            setattr(self, count, saved[count])
        torch.set_rng_state(saved["random"].cpu())

    def names(self) -> list[str]:
        return [name for name, _ in self.modules.named_parameters()]

    def rounds(self, wanted: Callable[[Any], bool]) -> Iterator[None]:
        """As long as it is `wanted`, asked with the training itself, a round for each batch: the seconds are counted,
        the state is saved on the way and in the end.
        """
        saved_at = last = time.monotonic()
        while wanted(self):
            yield
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if now - saved_at > SAVE_EVERY:
                self.save()
                saved_at = now
        self.save()

    def save(self) -> None:
        counts = {count: getattr(self, count) for count in self.counts}
        parts = {"modules": self.modules.state_dict(), "optimiser": self.optimiser.state_dict(), "shadow": self.shadow}
        write_pt(self.path, {**parts, **counts, "random": torch.get_rng_state()}, "state")

    def rate_now(self) -> float:
        """Of the next step: constant after a warm-up."""
        return self.rate * min(1, (self.steps + 1) / WARM_UP)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient, and the averages after it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate_now()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            now = self.modules.state_dict()
            floating = [key for key, value in now.items() if value.is_floating_point()]
            torch._foreach_lerp_([self.shadow[key] for key in floating], [now[key] for key in floating], 1 - decay)


def in_order(state: dict[str, Any], then: list[str], now: list[str]) -> dict[str, Any]:
    """The optimiser's state, whose parameters have numbers, for modules that list them in another order. then: the
    modules' tensors as they were saved; now: the parameters' names.
    """
    parameters = set(now)
    place = {name: i for i, name in enumerate(name for name in then if name in parameters)}
    moments = {i: state["state"][place[name]] for i, name in enumerate(now) if place[name] in state["state"]}
    return {**state, "state": moments}


class Training(Resumable):
    """Of the UNet and the text encoder, or of what stands beside them: also counts pictures."""

    # of log.csv, after the step, the seconds, the pictures and their size
    columns = ("loss", "placing")
    counts = ("seconds", "steps", "pictures")

    def __init__(self, state: Path, modules: dict[str, nn.Module], device: str = "cpu"):
        self.state, self.log, self.pictures = state, state / "log.csv", 0
        path = state / "training.pt"
        if not path.exists() and (averages := read_averages(state)):
            beginning = nn.ModuleDict(modules)
            beginning.load_state_dict({**beginning.state_dict(), **averages})
        super().__init__(path, modules, device)

    def save(self) -> None:
        """The whole state, then its averages."""
        super().save()
        write_averages(self.state, self.shadow)

    def write_log(self, size: int, *values: float) -> None:
        """A line of log.csv. size: the pictures' side; values: of `columns`."""
        seen = {"step": self.steps, "seconds": round(self.seconds), "pictures": self.pictures, "size": size}
        write_row(self.log, seen | {name: f"{v:.5f}" for name, v in zip(self.columns, values, strict=True)})


def write_row(file: Path, row: dict[str, Any]) -> None:
    """A line of a CSV, below the names of its columns."""
    new = not file.exists()
    with open(file, "a", newline="") as opened:
        writer = csv.writer(opened)
        if new:
            writer.writerow(row)
        writer.writerow(row.values())


def write_averages(folder: Path, shadow: dict[str, Tensor]) -> list[Path]:
    """The averages as float16 in files of at most LARGEST bytes, each written whole; a tensor is never cut."""
    files: list[dict[str, Tensor]] = [{}]
    room = LARGEST - 100_000  # for the header
    for key, value in shadow.items():
        if not value.is_floating_point():
            continue
        size = 2 * value.numel()
        if size > room:
            files.append({})
            room = LARGEST - 100_000
        files[-1][key] = value.to("cpu", torch.float16)
        room -= size
    paths = [folder / f"averages-{i}.safetensors" for i in range(1, len(files) + 1)]
    for path, tensors in zip(paths, files, strict=True):
        write_safetensors(path, tensors, what="state")
    return paths


def read_averages(folder: Path) -> dict[str, Tensor]:
    """What `write_averages` wrote, float32; empty where there is nothing."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("averages-*.safetensors")):
        with undamaged(path):
            found |= {key: value.float() for key, value in load_file(path).items()}
    return found


def average(folders: list[Path]) -> list[int]:
    """Give several trainings, none of which runs, the mean of their modules, moments and averages; each keeps its
    counts and its random numbers. A folder that has none gets one that goes on with other pictures, and a shard that
    one has drawn is everyone's. Returns how many pictures each of those that were there has seen.

    Raises FzError where no folder has a training, or one is of another model.
    """
    paths = [folder / "training.pt" for folder in folders]
    there = {path: read_training(path) for path in paths if path.exists()}
    if not there:
        raise FzError(f"state: no training in {', '.join(map(str, folders))}. Run python -m fz.mini.train first.")
    first = next(iter(there.values()))
    shapes = [[(key, value.shape) for key, value in saved["modules"].items()] for saved in there.values()]
    if any(other != shapes[0] for other in shapes):
        raise FzError("state: the trainings are of different models. Expected folders that began with the same one.")
    mean = {part: mean_of([saved[part] for saved in there.values()]) for part in ("modules", "shadow")}
    # a training that has not begun has none
    moments = mean_of([s for saved in there.values() if (s := saved["optimiser"]["state"])] or [{}])
    for number, path in enumerate(paths):
        numbers = there[path] if path in there else {**first, "random": random_numbers(number)}
        write_pt(path, {**numbers, **mean, "optimiser": {**first["optimiser"], "state": moments}}, "state")
        write_averages(path.parent, mean["shadow"])
    share_shards(folders)
    return [saved["pictures"] for saved in there.values()]


def read_training(path: Path) -> dict[str, Any]:
    """What `Training.save` wrote. Raises FzError for a file that is none."""
    with undamaged(path):
        saved = torch.load(path, weights_only=True, map_location="cpu")
        return {part: saved[part] for part in ("modules", "optimiser", "shadow", "random", *Training.counts)}


def mean_of(states: list[Any]) -> Any:
    """The mean of nested dicts of tensors, key by key; of what counts whole things, the first one's."""
    first = states[0]
    if isinstance(first, dict):
        return {key: mean_of([state[key] for state in states]) for key in first}
    return torch.stack(states).mean(0) if isinstance(first, Tensor) and first.is_floating_point() else first


def random_numbers(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def share_shards(folders: list[Path]) -> None:
    """A shard that one of the folders has is in all of them, once on the disk where it can be."""
    found = {file.name: file for folder in folders for file in folder.glob("shard-*.pt")}
    for folder in folders:
        for name, file in found.items():
            if not (folder / name).exists():
                try:
                    os.link(file, folder / name)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(file, folder / name)
