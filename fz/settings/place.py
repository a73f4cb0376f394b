"""Where do results go unless a run says so, and which names may files have?"""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from fz.errors import FzError

# what Windows takes for a device, whatever ending follows
DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)[1-9¹²³]")


def default_path(settings: Any) -> Path:
    """results/CLIP-FIRST-TARGET in the current folder; at most 193 bytes for the folder's own name."""
    clip, target = slug(Path(settings.clip.path).stem, 64) or "clip", slug(settings.edits[0].target, 128) or "edit"
    return Path("results") / f"{clip}-{target}"


def slug(text: str, longest: int) -> str:
    """Lower-case words joined by '-', safe as a file name on any system; at most so many bytes, cut between words where
    there are several.
    """
    words = cut_words(text, longest)
    return f"{words}_" if DEVICES.fullmatch(words) else words


def cut_words(text: str, longest: int) -> str:
    words = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-_")
    if len(words.encode("utf-8", "ignore")) <= longest:
        return words
    cut = words.encode("utf-8", "ignore")[:longest].decode("utf-8", "ignore")
    if words[len(cut)] != "-":
        cut = cut.rpartition("-")[0] or cut
    return cut.strip("-_")


def absent(place: Path) -> str:
    """What to say of a path where nothing is."""
    return f"is a link to {os.readlink(place)}, which does not exist" if place.is_symlink() else "does not exist"


def check_not_empty(path: str | Path, what: str) -> None:
    """Raise FzError for a path of nothing, as a shell makes it of a variable that is not set."""
    if not str(path).strip():
        raise FzError(f"{what}: got an empty path, expected a folder or a file.")


def expanded(path: str | Path, what: str) -> Path:
    """The path with ~ and ~user as the folders that they mean. Raises FzError, which begins with `what`, for a user
    that there is not.
    """
    check_not_empty(path, what)
    if "\0" in str(path):
        raise FzError(f"{what}: got {str(path)!r}, expected a path without null bytes.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise FzError(f"{what}: got {str(path)!r}, expected a name that files can have.") from None
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise FzError(f"{what}: {user} is no user of this machine. Expected ~/… for your own folder.") from None


def readable(path: str | Path, what: str) -> Path:
    """A folder that is there. Raises FzError, which begins with `what`."""
    place = expanded(path, what)
    if not place.is_dir():
        raise FzError(f"{what}: {place} {'is a file' if place.exists() else absent(place)}. Expected a folder.")
    return place


def writable(path: str | Path, what: str) -> Path:
    """A folder that is there or can be made, and written to. Raises FzError, which begins with `what`."""
    place = expanded(path, what)
    above = next(p for p in (place, *place.parents) if p.exists() or p.is_symlink())
    if not above.is_dir():
        got = "a file" if above.exists() else f"a link to {os.readlink(above)}, which does not exist"
        raise FzError(f"{what}: {above} is {got}, expected a folder. Pass another --{what}.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise FzError(f"{what}: {place} cannot be written (permission denied). Pass another --{what}.")
    return place


def check_cache(cache: str | None) -> None:
    """Raise FzError where a folder of inversions was named and cannot be written. Of the usual one, a run tells that it
    cannot be resumed, and goes on.
    """
    if cache not in (None, "none"):
        writable(cache, "cache")


def writable_file(path: str | Path, what: str) -> Path:
    """A file that can be written, its folder too. Raises FzError, which begins with `what`."""
    place = expanded(path, what)
    if place.is_dir():
        raise FzError(f"{what}: {place} is a folder, expected a file's name. Pass another --{what}.")
    writable(place.parent, what)
    return place
