"""Where do results go unless a run says so, and which names may files have?"""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from fz.errors import FzError


def default_path(settings: Any) -> Path:
    """results/CLIP-FIRST-TARGET in the current folder; at most 193 bytes for the folder's own name."""
    clip, target = slug(Path(settings.clip.path).stem, 64) or "clip", slug(settings.edits[0].target, 128) or "edit"
    return Path("results") / f"{clip}-{target}"


def slug(text: str, longest: int) -> str:
    """Lower-case words joined by '-', safe as a file name on any system; at most so many bytes, cut between words where
    there are several.
    """
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


def expanded(path: str | Path, what: str) -> Path:
    """The path with ~ and ~user as the folders that they mean. Raises FzError, which begins with `what`, for a user
    that there is not.
    """
    if "\0" in str(path):
        raise FzError(f"{what}: got {str(path)!r}, expected a path without null bytes.")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise FzError(f"{what}: {user} is no user of this machine. Expected ~/… for your own folder.") from None
