"""What of Windows the locks meet: ranges of bytes, each locked by one handle alone, and open files that stay."""

import errno
import fcntl
import os
import struct

from fz import locks


class Msvcrt:
    """`msvcrt.locking` on locks of Linux that belong to an open file as Windows' do; tells of those that are had."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self):
        self.ranges = set()  # (file, first byte, count)

    def locking(self, file, mode, count):
        start = os.lseek(file, 0, os.SEEK_CUR)
        mine = [(first, n) for f, first, n in self.ranges if f == file and first < start + count and start < first + n]
        if mode == self.LK_UNLCK and (file, start, count) not in self.ranges or mode == self.LK_NBLCK and mine:
            raise PermissionError(errno.EACCES, "Permission denied")
        kind = fcntl.F_UNLCK if mode == self.LK_UNLCK else fcntl.F_WRLCK
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, count, 0))
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None
        (self.ranges.discard if mode == self.LK_UNLCK else self.ranges.add)((file, start, count))


def is_open(path, dir_fd=None):
    """Has this process that file open?"""
    there = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), there):
                return True
        except OSError:
            continue
    return False


def pretend(monkeypatch):
    """The locks' module is on Windows from now on, and files that this process has open cannot be removed."""
    msvcrt, close, unlink = Msvcrt(), os.close, os.unlink

    def closed(file):
        msvcrt.ranges = {of for of in msvcrt.ranges if of[0] != file}
        close(file)

    def unlinked(path, *, dir_fd=None):
        if is_open(path, dir_fd):
            raise PermissionError(errno.EACCES, "in use", path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", msvcrt, raising=False)
    monkeypatch.setattr(os, "close", closed)
    monkeypatch.setattr(os, "unlink", unlinked)
