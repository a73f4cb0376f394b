"""Who writes into this folder? One process at a time: the second is told who has it.

The lock is the operating system's, on a file in the folder: it goes with its process, however that ends, so that no
dead one keeps a folder. What the file says is for people: process, machine and since when.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from fz.errors import FzError
from fz.locks import lock, remove
from fz.results import own

NAME = ".fz-lock"
# looks, a twentieth of a second apart, at who has a lock
TRIES = 10


class Busy(FzError):
    """Another process writes there. work: what it does, as its `Lock` was told."""

    def __init__(self, line: str, work: str = ""):
        super().__init__(line)
        self.work = work


class Lock:
    """A folder of one's own until `release`, or, with another name of the lock's file, a part of it. Raises Busy if
    another has it, OSError if the folder cannot be written. work: told to those that are refused. held: does the file
    system have such locks?
    """

    def __init__(self, folder: Path, what: str = "out", name: str = NAME, work: str = ""):
        self.path, self.held = folder / name, True
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            self.file: int | None = os.open(self.path, flags, 0o644)
            try:
                free = lock(self.file)
            except OSError:
                self.held = False
                break  # a file system that has no locks: as safe as it can be there
            if not free:
                said, theirs = _owner(self.file)
                os.close(self.file)
                line = f"{what}: {folder} is being written by {said}. Wait until it is done, or pass another --{what}."
                raise Busy(line, theirs)
            # whoever had it before removed the file between `open` and now: then it is no longer the folder's
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self.file), os.stat(self.path)):
                    break
            os.close(self.file)
        about = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        about |= {"work": work} if work else {}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self.file, 0)
            os.write(self.file, json.dumps(about).encode())

    def release(self) -> None:
        """Give the folder back; once more does nothing."""
        file, self.file = self.file, None
        if file is not None:
            remove(self.path, file)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def claimed(folder: Path, what: str = "out") -> Iterator[None]:
    """A folder of one's own in the block, made where there was none; one that stays empty goes again. Raises FzError
    where another process has it or it cannot be written.
    """
    try:
        made = own.made(folder)
        lock = Lock(folder, what)
    except OSError as error:
        raise FzError(f"{what}: {folder} cannot be written ({error.strerror}). Pass another --{what}.") from None
    try:
        with lock:
            yield
    finally:
        own.unmake(made)


def _owner(file: int) -> tuple[str, str]:
    """'process 12 on host since …' and its work, as far as the file says: a process that has just got the lock is about
    to.
    """
    for _ in range(TRIES):
        with contextlib.suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
            os.lseek(file, 0, os.SEEK_SET)
            about = json.loads(os.read(file, 4096))
            process, machine, since = (str(about[name])[:100] for name in ("process", "machine", "since"))
            here = "this program itself, " if process == str(os.getpid()) and machine == platform.node() else ""
            return f"{here}process {process} on {machine} since {since}", str(about.get("work", ""))
        time.sleep(0.05)
    return "another process", ""
