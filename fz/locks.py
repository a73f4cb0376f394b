"""How does a process lock an open file, alone or with others? The lock is the operating system's: it goes with its
process, however that ends.
"""

import contextlib
import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

# Windows locks bytes, each for one alone: who shares has one of BYTES, who is alone has all. Beyond what is written, as
# nobody reads bytes that another has locked
FAR, BYTES = 1 << 30, 256
IN_THE_WAY = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


def lock(file: int, alone: bool = True) -> bool:
    """Have the lock of an open file, in place of the one that it had; False, and none, if others are in the way. Raises
    OSError where the file system has no locks.
    """
    try:
        if fcntl is None:
            _lock_bytes(file, alone)
        else:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in IN_THE_WAY:
            return False
        raise
    return True


def remove(path: Path, file: int) -> None:
    """Remove a file that is open and locked, and close it; before that where open files can be removed, so that nobody
    gets its lock between.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.close(file)
    if fcntl is None:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _lock_bytes(file: int, alone: bool) -> None:
    shared = [(byte, 1) for byte in range(BYTES)]
    for of_mine in ((0, BYTES), *shared):
        with contextlib.suppress(OSError):
            _bytes(file, msvcrt.LK_UNLCK, *of_mine)
    *others, last = [(0, BYTES)] if alone else shared
    for free in others:
        with contextlib.suppress(PermissionError):
            return _bytes(file, msvcrt.LK_NBLCK, *free)
    _bytes(file, msvcrt.LK_NBLCK, *last)


def _bytes(file: int, mode: int, byte: int, count: int) -> None:
    place = os.lseek(file, 0, os.SEEK_CUR)
    os.lseek(file, FAR + byte, os.SEEK_SET)
    try:
        msvcrt.locking(file, mode, count)
    finally:
        os.lseek(file, place, os.SEEK_SET)
