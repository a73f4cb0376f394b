"""Which files does a run read, and are they still what they were?"""

import functools
import glob
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fz import mini
from fz.weights.names import commit_of
from fz.weights.needed import beside

MODELS = ("checkpoint", "vae", "tokenizer", "model_config", "control")


def inputs_of(settings: Any) -> Iterator[tuple[str, str]]:
    """(setting, path or Hub name) of each."""
    yield "video", settings.clip.path
    yield from (("mask", edit.mask) for edit in settings.edits if edit.mask)
    yield from ((name, given) for name in MODELS if (given := getattr(settings, name)))
    if settings.control_video not in (None, "canny"):
        yield "control_video", settings.control_video
    yield from ((name, path) for name in ("lora", "embedding") for path, _ in getattr(settings, name))


def stamp_of(settings: Any) -> str:
    """A hash over names, sizes and times of the files that a run reads, also of those beside a file that it names; of
    Hub names over their cached commit: the same as long as nobody changed them. Of the miniature over its weights: each
    installation has its files' times.
    """
    sha = hashlib.sha256(b"" if settings.checkpoint else weights_of_miniature())
    for what, path in inputs_of(settings):
        if commit := commit_of(path):
            sha.update(f"{path} {commit}\n".encode("utf-8", "surrogateescape"))
            continue
        for file in files_of(what, path):
            try:
                stat = file.stat()
            except OSError:
                continue
            sha.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:32]


@functools.cache
def weights_of_miniature() -> bytes:
    sha = hashlib.sha256()
    for file in sorted(mini.FOLDER.glob("*/*.safetensors")):
        sha.update(file.read_bytes())
    return sha.digest()


def files_of(what: str, given: str) -> Iterable[Path]:
    """Those that are read where a setting names this path."""
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        return []
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if path.exists():
        return filter(None, (path, beside(what, path)))
    return [Path(p) for p in sorted(glob.glob(str(path)))]
