"""How is a file written whole or not at all?"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fz.errors import FzError


def write_text(path, text: str) -> None:
    """UTF-8, whole or not at all; what of a file's name is no text is written as \\udcff."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def unwritten(what: str, path: Path, why: object) -> FzError:
    """What a command says of a file that it could not write. what: the option that chose the place."""
    reason = " ".join(str(why).split())[:120]
    return FzError(f"{what}: {path} cannot be written ({reason}). Free space there or pass another --{what}.")


@contextmanager
def atomic(path, what: str = "out") -> Iterator[Path]:
    """A place to write path's content to: its own name, in a hidden folder beside it, whose name has a number of its
    own. Moved to path when the block ends well and removed when it does not.

    The name is path's own, as formats write it into files: zip archives of torch.save. A folder takes the place of the
    folder that is there: the caller knows that it may go. what: the option that chose the place. Raises FzError where
    the folder cannot be written to.
    """
    path = Path(path)
    # no other process has it, nor one of that number on another machine that shares the folder
    hidden = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09d}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
        yield hidden / path.name
        put(hidden / path.name, path)
    except OSError as error:
        no_folder = isinstance(error, FileExistsError | NotADirectoryError) and not path.parent.is_dir()
        why = f"{path.parent} is not a folder" if no_folder else error.strerror or error
        raise unwritten(what, path, why) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def put(new: Path, path: Path) -> None:
    """Rename, also a folder over another: that is moved aside, and comes back where the new one cannot be moved."""
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)
        return
    old = new.with_name(".before")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
