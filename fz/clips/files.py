"""Which files may be opened as a clip at all: regular ones, of kinds that are named here, of at most MAX_PIXELS pixels;
known before anything is decoded.
"""

import os
import stat
from pathlib import Path

from fz.errors import FzError, suggest
from fz.settings.place import absent

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MOVIES = (".mp4", ".webm", ".gif", ".apng", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".ts", ".flv", ".ogv", ".wmv")
# pictures that fz does not read: said where they lie among others that it does
UNREAD = (".heic", ".heif", ".jxl", ".jp2", ".exr", ".tga", ".dng", ".hdr", ".psd", ".svg", ".dpx", ".jfif", ".qoi")
KINDS = "a video (mp4, webm, gif), an image, a folder of images or a glob"
# 8192 x 8192
MAX_PIXELS = 2**26
# how a pointer begins that git-lfs has in place of a file
LFS = b"version https://git-lfs"
# frames a second that mp4 and gif can be written at
SLOWEST, FASTEST = 1 / 600, 1000


def check_regular(path: Path) -> None:
    """Raises FzError for what is no file with an end: a pipe, a device, a socket."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFIFO: "a pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
            stat.S_IFDIR: "a folder",
        }
        raise FzError(f"video: {path} is {kinds.get(stat.S_IFMT(mode), 'no file')}, expected {KINDS}")
    try:
        with open(path, "rb") as file:
            begins = file.read(len(LFS))
    except PermissionError:
        raise
    except OSError as error:
        raise FzError(f"video: {path} cannot be read ({error.strerror}), expected {KINDS}") from error
    if begins == LFS:
        raise FzError(
            f"video: {path} is a git-lfs pointer, not the file. Run `git lfs pull`, or download the file itself"
        )


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raises FzError for pictures of more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise FzError(
            f"video: {path} is {width}x{height} (width x height), {width * height / 1e6:.0f} million pixels; expected "
            f"at most {MAX_PIXELS / 1e6:.0f} million. Make it smaller"
        )


def check_rate(fps: float, do: str = "") -> float:
    """fps, if it can be written. Raises FzError, with what to do about it, if not."""
    if not SLOWEST <= fps <= FASTEST:
        raise FzError(f"fps: got {fps:.6g} frames a second, expected 1/600 to {FASTEST}.{do}")
    return fps


def missing(path: str, place: Path) -> str:
    """What to say of a path where nothing is."""
    if "://" in path:
        return f"video: {path} is an address, expected {KINDS} on this machine; download it first"
    if place.is_symlink():
        return f"video: {path} {absent(place)}. Expected {KINDS}"
    if not place.parent.is_dir():
        return f"video: {path} does not exist, nor does the folder {place.parent}. Expected {KINDS}"
    try:
        names = os.listdir(place.parent)
    except PermissionError:
        names = []
    hint = suggest(place.name, names) or suggest(
        place.stem, [name for name in names if Path(name).suffix.lower() in IMAGES + MOVIES]
    )
    return f"video: {path} does not exist.{hint} Expected {KINDS}"


def denied(path: Path | str) -> FzError:
    return FzError(f"video: {path} may not be read (permission denied)")


def short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]
