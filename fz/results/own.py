"""Which files in a folder are fz's own, and how are they moved and removed without touching any other?

A name counts below its folder alone: a link on the way, or '..', leads out, and is not followed. Nothing is removed
that a run did not list.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from fz.errors import FzError


def inside(folder: Path, name: str) -> Path | None:
    """folder/name; None where the name leads out of the folder, by itself or through a link."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        return None
    place = folder
    for part in parts[:-1]:
        place = place / part
        if place.is_symlink():
            return None
    return place / parts[-1]


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove these files, and what `atomic` had half written of them; then the folders that they leave empty."""
    names, emptied = list(names), set()
    remove_halves(folder, names)
    for name in names:
        place = inside(folder, name)
        if place is None:
            continue
        if place.is_file() and not place.is_symlink():
            place.unlink(missing_ok=True)
        emptied |= {above for above in place.parents if folder in above.parents}
    for above in sorted(emptied, key=lambda p: -len(p.parts)):
        with contextlib.suppress(OSError):  # not empty, or not there
            above.rmdir()


def remove_halves(folder: Path, names: Iterable[str]) -> None:
    """Remove what `atomic` had half written of these files when its process was killed."""
    for above in {place.parent for name in names if (place := inside(folder, name)) is not None}:
        written = {Path(name).name for name in names}
        for half in above.glob(".*.part"):
            found = re.fullmatch(r"\.(.+)\.\d+\.part", half.name)
            if not found or found[1] not in written or half.is_symlink():
                continue
            if half.is_file():
                half.unlink(missing_ok=True)
            elif half.is_dir() and {inner.name for inner in half.iterdir()} <= {found[1]}:
                shutil.rmtree(half, ignore_errors=True)


def move(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Move these files from one folder to another, each at once; those that are not in the first are there already."""
    for name in names:
        old, new = inside(source, name), inside(folder, name)
        if old is None or new is None:
            raise FzError(f"out: {folder / name} is reached through a link. Take the link away, or pass another --out.")
        if old.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            os.replace(old, new)


def made(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns what there was not before, innermost first. Raises OSError."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def unmake(folders: Iterable[Path]) -> None:
    """Remove folders that `made` made, as far as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
