"""What does a cell of Table 1 depend on? A key by which it is found again."""

import functools
import hashlib
import json
import os
from pathlib import Path

from fz.errors import FzError
from fz.results.folder import as_json
from fz.results.inputs import MODELS, files_of, inputs_of
from fz.settings.config import Settings
from fz.settings.place import absent, expanded
from fz.weights.names import commit_of

# of a checkpoint's files: weights, and what says how they are used
READ = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json", ".txt", ".yaml")
TAIL = 65536  # bytes of a weight file that are read


def key_of(settings: Settings, by: str) -> str:
    """Of a run's settings, of the files that it reads, and of who judges it (`by`)."""
    # the clip by its name and its pictures: the bench's folder may be moved; threads change no more than the last digit
    clip = {**as_json(settings)["clip"], "path": Path(settings.clip.path).name}
    files = [
        (what, fingerprint(given, what) if what in MODELS else contents(given, what))
        for what, given in inputs_of(settings)
    ]
    about = as_json(settings) | {"clip": clip, "out": None, "threads": None, "by": by, "files": files}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def contents(given: str, what: str) -> str:
    """Of a clip, a mask or a small model: a hash of all its files; of a Hub name the cached commit."""
    sha = hashlib.sha256((commit_of(given) or "").encode())
    for file in () if commit_of(given) else filter(Path.is_file, files_of(what, given)):
        stat = os.stat(file)
        sha.update(f"{file.name} {hash_of(file, stat.st_size, stat.st_mtime_ns)}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def hash_of(file: Path, size: int, changed: int) -> str:
    """Of a whole file, read once as long as its size and time say that it is the same."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(given: str | Path | None, what: str = "checkpoint") -> str:
    """Of a model: of a Hub name the cached commit; of files names, sizes and the last 64 KB of each. Raises FzError
    where there are none.
    """
    if given is None:
        return "none"
    if commit := commit_of(str(given)):
        return hashlib.sha256(f"{given} {commit}".encode()).hexdigest()[:16]
    sha, root = hashlib.sha256(), expanded(given, what)
    if not root.exists():
        raise FzError(f"{what}: {root} {absent(root)}. Expected a model's folder or file, or a Hub name.")
    for file in filter(Path.is_file, files_of(what, str(root))):
        if file.suffix in READ:
            with open(file, "rb") as opened:
                size = opened.seek(0, 2)
                opened.seek(max(0, size - TAIL))
                sha.update(f"{file.name} {size} ".encode("utf-8", "surrogateescape") + opened.read())
    return sha.hexdigest()[:16]
