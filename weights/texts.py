"""The small files of a checkpoint, configs and vocabularies: JSON, read or refused. No torch."""

import json
from collections.abc import Iterable
from pathlib import Path

from fz.errors import FzError
from fz.settings.place import absent

LFS = "version https://git-lfs"  # how a pointer begins


def read_json(path: Path) -> dict:
    """A JSON object. Raises FzError if the file is absent, no JSON, or something else than an object."""
    if path.exists() and not path.is_file():
        raise FzError(f"{path}: is no file, expected a JSON object in one. Download it again.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except FileNotFoundError:
        refuse_gone(path.parent, [path.name])
        raise FzError(f"{path}: no such file. Expected a diffusers config there.") from None
    except OSError as error:
        raise FzError(f"{path}: cannot be read ({error.strerror}).") from None
    except RecursionError:
        raise FzError(f"{path}: no valid JSON (nested too deeply). Download it again.") from None
    except ValueError as error:
        said = " (it is a git-lfs pointer: run `git lfs pull`)" if text_of(path).startswith(LFS) else ""
        raise FzError(f"{path}: no valid JSON{said or f' ({error})'}. Download it again.") from None
    if not isinstance(value, dict):
        raise FzError(f"{path}: got a JSON {type(value).__name__}, expected an object.")
    return value


def refuse_gone(folder: Path, names: Iterable[str]) -> None:
    """Raise FzError for the first of these files that is a link to one that is gone, as in a Hub's cache whose blobs
    were removed.
    """
    for file in (folder / name for name in names):
        if file.is_symlink() and not file.exists():
            raise FzError(f"{file}: {absent(file)}. Download it again.")


def text_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(512).decode("utf-8", "replace")
