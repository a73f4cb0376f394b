"""Inversions that were done: a folder for each, named by a hash of all that its latents depend on.

A second edit of the same clip finds the inversion there; a run that was killed goes on from its last step. Latents and
averaged maps are kept for good (1.2 MB a step at 512², 8 frames), an edit's own steps and the queries and keys of
`--store disk` until the run is done. The least recently used inversions go when all of them take more than `LIMIT`:
folders with an inversion's name and MARKER that no run has open, and no other.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from fz.ddim import CLEAN, Schedule
from fz.errors import FzError
from fz.locks import lock, remove
from fz.memory.kept import Say, StepLog
from fz.settings.place import check_cache, expanded
from fz.source import Source

LIMIT = 10 * 10**9  # bytes
PART_AGE = 24 * 3600  # seconds after which a half-written file belongs to a run that was killed
# in every inversion's folder, and open while a run uses it
MARKER = ".fz-inversion"
DONE = "done"  # in the log of an edit that is of no use any more
TEMPORARY = "fz-"
# looks, a twentieth of a second apart, at an inversion that is being removed
TRIES = 100


def default_folder() -> Path:
    """Where inversions live unless told otherwise: FZ_CACHE, or the user's cache folder."""
    if os.environ.get("FZ_CACHE"):
        return expanded(os.environ["FZ_CACHE"], "FZ_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fz" / "inversions"


def folder_of(cache: str | None) -> Path:
    """Where the inversions of a run are that was told so (see `Inversion.open`)."""
    if cache == "none":
        return Path(tempfile.gettempdir())
    return expanded(cache, "cache") if cache else default_folder()


def digest(*parts: Any) -> str:
    """SHA-256 over tensors' bytes, dtypes and shapes, dataclasses field by field, and JSON of everything else; 32 hex
    digits of it. Each part comes with its kind and length, so that other parts have other bytes.
    """
    sha = hashlib.sha256()
    for part in parts:
        if dataclasses.is_dataclass(part):
            fields = [getattr(part, field.name) for field in dataclasses.fields(part)]
            kind, content = type(part).__name__, digest(*fields).encode()
        elif isinstance(part, Tensor):
            kind = f"{part.dtype}{tuple(part.shape)}"
            content = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        else:
            kind, content = "json", json.dumps(part, sort_keys=True, default=str).encode()
        sha.update(f"{kind} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Written:
    """A weight as it was hashed: another storage, version or view of it may hold other numbers. The storage is not kept
    alive by this, and while it lives nothing else has its place.
    """

    storage: ReferenceType
    version: int
    view: tuple[Any, ...]

    @classmethod
    def of(cls, t: Tensor) -> "Written":
        return cls(ref(t.untyped_storage()), t._version, (t.dtype, t.shape, t.stride(), t.storage_offset()))

    def is_now(self, t: Tensor) -> bool:
        now = Written.of(t)
        return self.storage() is now.storage() and (self.version, self.view) == (now.version, now.view)


DIGESTS: WeakKeyDictionary[nn.Module, tuple[dict[str, Written], str]] = WeakKeyDictionary()


def model_digest(model: nn.Module) -> str:
    """Of every weight by name, in their dtype. Hashed again only where something was written to them since, by anything
    but their `.data`, which torch does not count.
    """
    state = model.state_dict(keep_vars=True)
    if any(t.is_inference() for t in state.values()):  # of which torch counts nothing
        return digest_of(state)
    before, found = DIGESTS.get(model, ({}, ""))
    if before.keys() != state.keys() or not all(before[name].is_now(t) for name, t in state.items()):
        found = digest_of(state)
        DIGESTS[model] = {name: Written.of(t) for name, t in state.items()}, found
    return found


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Several threads, as hashing lets go of the interpreter."""
    with ThreadPoolExecutor() as pool:
        return digest(dict(zip(state, pool.map(digest, state.values()), strict=True)))


class Inversion:
    """One folder: step 0 holds z_0, step i the latent after i steps and the averaged map of step i."""

    def __init__(self, cache: Path, key: str, say: Say):
        self.folder, self.edits = cache / key, []
        self.log = StepLog(self.folder / "steps", say)
        self.marker = marked(self.folder)

    @classmethod
    @contextlib.contextmanager
    def open(cls, cache: str | None, key: str, say: Say) -> Iterator["Inversion"]:
        """The inversion of that key in the folder `cache` (None: the default one; 'none': one that is removed when the
        block ends). Raises FzError for one that is named and cannot be written.
        """
        if cache == "none":
            sweep_temporary(say)
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, ignore_cleanup_errors=True) as folder:
                inversion = cls(Path(folder), key, say)
                try:
                    yield inversion
                finally:
                    inversion.close()
            return
        folder = folder_of(cache)
        if cache:
            check_cache(cache)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                why = error.strerror or error
                raise FzError(f"cache: {folder} cannot be written ({why}). Pass another --cache, or none.") from error
        inversion = cls(folder, key, say)
        try:
            yield inversion
        finally:
            inversion.close()
        prune(folder, keep=[key], say=say)

    @staticmethod
    def steps_in(cache: str | None, key: str, steps: int) -> int:
        """How many of its steps are in the cache without a gap, by their files alone: nothing is read or made."""
        log = StepLog(folder_of(cache) / key / "steps", lambda line: None)
        return next((k for k in range(steps) if not log.path(k + 1).is_file()), steps)

    def finished(self) -> None:
        """Remove what only a run in progress needs; where another is using it, the last one that ends does."""
        if self.marker is None or locked(self.marker, alone=True):
            done = {log.folder for log in self.edits} | {mark.parent for mark in self.folder.glob(f"edit-*/{DONE}")}
            for folder in (self.operands, *done):
                shutil.rmtree(folder, ignore_errors=True)
        else:
            locked(self.marker, alone=False)
            for log in self.edits:
                with contextlib.suppress(OSError):  # it was not written, or cannot be
                    (log.folder / DONE).touch()

    def close(self) -> None:
        marker, self.marker = self.marker, None
        if marker is not None:
            os.close(marker)

    def z0(self) -> Tensor | None:
        first = self.log.get(0)
        return first and first["z"]

    def restore(self, source: Source, schedule: Schedule) -> int:
        """Put the steps that are done into source, as far as they are there without a gap. Returns how many."""
        for done, (t_prev, t) in enumerate(schedule.upward(), start=1):
            step = self.log.get(done)
            if step is None:
                return done - 1
            source.restore(t_prev, t, step)
        return schedule.steps

    def save(self, done: int, source: Source, schedule: Schedule) -> None:
        """Keep step `done` of an inversion (0: z_0)."""
        t = (CLEAN, *reversed(schedule.timesteps))[done]
        self.log.put(done, source.left(t) if done else {"z": source.latents[t]})

    def edit_log(self, key: str) -> StepLog:
        """The log of one edit of this inversion; its steps hold the latents after them."""
        self.edits.append(StepLog(self.folder / f"edit-{key}", self.log.say))
        return self.edits[-1]

    @property
    def operands(self) -> Path:
        """The folder of `--store disk`."""
        return self.folder / "operands"


def leading(log: StepLog, steps: int) -> list[dict[str, Tensor]]:
    """The steps of an edit's log without a gap, 1, 2, …: their latents, and what a solver remembers."""
    found = []
    for k in range(1, steps + 1):
        step = log.get(k)
        if step is None:
            break
        found.append(step)
    return found


def prune(cache: Path, keep: Iterable[str] = (), limit: int = LIMIT, say: Say = lambda line: None) -> None:
    """Remove the least recently used inversions until no more than `limit` bytes are left, and files of runs that were
    killed. Says what goes; touches nothing that is not an inversion, and none that a run has open.
    """
    with contextlib.suppress(OSError):
        folders = {p: sum(size_of(p).values()) for p in cache.iterdir() if is_inversion(p)}
        for folder, size in sorted(folders.items(), key=lambda entry: entry[0].stat().st_mtime):
            if sum(folders.values()) <= limit:
                break
            if folder.name in keep:
                continue
            if remove_unused(folder):
                folders.pop(folder)
                say(
                    f"cache: the inversion {folder} went ({size / 1e9:.2f} GB): all took more than {limit / 1e9:.3g} GB"
                )
            else:
                # some of it may have gone
                folders[folder] = sum(size_of(folder).values())
        for folder in folders:
            for part in folder.rglob(".*.part"):
                if part.is_dir() and not part.is_symlink() and time.time() - part.stat().st_mtime > PART_AGE:
                    shutil.rmtree(part, ignore_errors=True)


def sweep_temporary(say: Say) -> None:
    """Remove what runs with `--cache none` that were killed left in the folder for temporary files."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
            if folder.is_symlink() or not folder.is_dir():
                continue
            within = list(folder.iterdir())
            if len(within) == 1 and is_inversion(within[0]) and remove_unused(within[0]):
                folder.rmdir()
                say(f"cache: {folder} went, which a killed run had left")


def is_inversion(folder: Path) -> bool:
    """Does it have an inversion's name and marker?"""
    return (
        re.fullmatch(r"[0-9a-f]{32}", folder.name) is not None
        and not folder.is_symlink()
        and folder.is_dir()
        and (folder / MARKER).is_file()
        and not (folder / MARKER).is_symlink()
    )


def marked(folder: Path) -> int | None:
    """The marker of an inversion that a run uses, made where there is none, open and locked; None where none can be
    written. One that is being removed is waited for, and made anew.
    """
    for _ in range(TRIES):
        marker = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # what `prune` goes by
            os.utime(folder)
            marker = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT, 0o644)
            if locked(marker, alone=False) and os.path.samestat(os.fstat(marker), os.stat(folder / MARKER)):
                return marker
        except FileNotFoundError:
            pass  # it went between two of these lines
        except OSError:
            return marker
        if marker is not None:
            os.close(marker)
        time.sleep(0.05)
    return None


def remove_unused(folder: Path) -> bool:
    """Remove an inversion, unless a run has it open. Returns whether it is gone."""
    try:
        marker = os.open(folder / MARKER, os.O_RDWR)
    except OSError:
        return False
    if not locked(marker, alone=True):
        os.close(marker)
        return False
    for path in [path for path in folder.iterdir() if path.name != MARKER]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    # the marker last: what is left of a removal that is cut short is still an inversion
    if [path.name for path in folder.iterdir()] != [MARKER]:
        os.close(marker)
        return False
    remove(folder / MARKER, marker)
    # a run that has made it anew by now keeps it
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def locked(file: int, alone: bool) -> bool:
    """Have an inversion open, with others or alone; False if others are in the way. True where there are no locks."""
    try:
        return lock(file, alone)
    except OSError:
        return True


def size_of(folder: Path) -> Mapping[Path, int]:
    return {f: f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink()}
