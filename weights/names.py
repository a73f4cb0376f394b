"""Which texts are names of the Hub, as CompVis/stable-diffusion-v1-4, and what does the Hub's cache have of them?

A path that is there is no name. Nothing here makes a request. HF_HUB_OFFLINE and HF_HOME are read when they are needed.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fz import records
from fz.errors import FzError
from fz.settings.place import expanded

# what no model of the Hub is called, but files are
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".json", ".yaml", ".yml", ".zip", ".git")
NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>\w[\w./-]*))?(?::(?P<file>[^/\\:\n][^\\:\n]*))?",
    re.ASCII,
)
LONGEST = 96  # characters of a model's name
COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class Name:
    """A model of the Hub. revision: a branch, a tag or a commit. file: the one that is meant, None for what is needed
    of the model.
    """

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + revision + (f":{self.file}" if self.file else "")

    @property
    def folder(self) -> Path:
        """Of the cache."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}"


def shaped(given: str) -> Name | None:
    """The name that a text has the form of."""
    found = NAME.fullmatch(given)
    if not found or ".." in given:
        return None
    repo, revision, file = found["repo"], found["revision"], found["file"]
    if "--" in repo or len(repo) > LONGEST or repo.lower().endswith(ENDINGS):
        return None
    return Name(repo, revision or "main", file)


def parsed(given: str) -> Name | None:
    """The Hub name that a text is; None for a path, which is also what begins with a folder that is there."""
    name = shaped(given)
    return None if name is None or Path(given).exists() or Path(given.partition("/")[0]).is_dir() else name


def shown(given: str | Path) -> str:
    """A model's name for people: a Hub name as it is, a path's last part; of a folder in the Hub's cache its model's.

    Links are not followed: in the cache they end at files that are called by their hash.
    """
    if name := parsed(str(given)):
        return str(name)
    path = Path(os.path.abspath(expanded(given, "checkpoint")))
    folder = path.parent.parent if path.parent.name == "snapshots" else path
    if folder.name.startswith("models--"):
        return folder.name.removeprefix("models--").replace("--", "/")
    return path.name


# ---- the cache ---------------------------------------------------------------------------------------------


class Unreachable(FzError):
    """The Hub gave no answer."""


def hub_cache() -> Path:
    """Where the Hub's files are kept, read now rather than when its client was imported."""
    env = os.environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(name):
            return expanded(env[name], name)
    if env.get("HF_HOME"):
        return expanded(env["HF_HOME"], "HF_HOME") / "hub"
    return expanded(env.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "huggingface" / "hub"


def offline() -> str | None:
    """The variable that forbids a request."""
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((v for v in variables if os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def cached(name: Name) -> Path | None:
    return cached_at(name.folder, name.revision)


def cached_at(folder: Path, revision: str) -> Path | None:
    """The snapshot of a branch, tag or commit in a model's folder of the cache, whole or not."""
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    there = folder / "snapshots" / commit
    return there if COMMIT.fullmatch(commit) and there.is_dir() else None


def listing(snapshot: Path) -> Path:
    """Where the names of all files are kept that the Hub has of a model at a commit: the cache has some of them."""
    return snapshot.parent.parent / ".fz-files" / f"{snapshot.name}.json"


def listed(snapshot: Path) -> set[str]:
    """Those names, as far as the Hub was ever asked for them; none of a folder that is no snapshot."""
    return set(records.read(listing(snapshot), [str]) or ()) if snapshot.parent.name == "snapshots" else set()


def commit_of(given: str) -> str | None:
    """What a name's cached snapshot is of, for whoever asks whether the same files would be read again."""
    name = parsed(given)
    folder = cached(name) if name else None
    return folder.name if folder else None


def followed(path: Path) -> Path:
    """path; of a model's folder in the Hub's cache (models--X--Y) the snapshot of its main branch, or its newest."""
    if not path.is_dir() or not path.resolve().name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    found = cached_at(path, "main")
    snapshots = [p for p in (path / "snapshots").iterdir() if p.is_dir()]
    return found or max(snapshots, key=lambda p: p.stat().st_mtime, default=path)


def files_in(folder: Path) -> set[str]:
    """Names as the Hub has them; a link to a blob that is gone is no file."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def links_in(folder: Path) -> set[str]:
    """Links in a folder, to files that are there or gone."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink()}
