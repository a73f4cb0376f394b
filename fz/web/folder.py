"""What is kept of visitors, where, and for how long? Clips that they brought, results, and nothing that one could
reach of another's.

ROOT/visitors/V/C: a visitor's clip, V a hash of the secret in his browser's cookie. In it clip.json; upload/, which
goes after a day; results/R with about.json and run/, the folder that `fz run` writes; sheet.json, the last sheet of
settings. ROOT/inversions: what `fz run --cache` keeps. No name of a file comes from a visitor but an upload's, which is
cut to what any system can hold.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import string
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fz import records
from fz.errors import FzError
from fz.memory.inversions import is_inversion, remove_unused
from fz.results.lock import Busy, Lock
from fz.settings.place import slug
from fz.web import wording

ID = re.compile(r"[0-9a-f]{16}")
VISITOR = re.compile(r"[0-9a-f]{32}")
DAY = 24 * 3600
MONTH = 30 * DAY
# about.json of a result, sheet.json and preview.json of a clip
ABOUT = {
    "form": dict,
    "target": str,
    "frames": records.within(1, 10**6),
    "fps": records.within(1e-6, 1e6),
    "seconds?": records.within(0, 1e12),
    "texts?": records.Each(str),
}
SHEET = {"source": str, "tiles": [{"form": dict, "picture": str, "label": str}]}
PREVIEW = {"source": [str], "edit": [str], "target": str}
MOST_FILES = 600  # of one upload
LONGEST_NAME, LONGEST_NUMBER = 60, 20  # bytes of its words, digits after them
RESULTS_LIMIT = 20 * 10**9  # bytes of all results; the oldest go
FREE = 10**9  # bytes of the disk that uploads leave


def new_id() -> str:
    return secrets.token_hex(8)


def read_json(path: Path, schema: records.Schema = dict) -> dict[str, Any]:
    """An own file's content; {} where there is none, or none of the schema's form."""
    return records.read(path, schema) or {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, also where two threads write it at once: `fz.whole.atomic` tells processes apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_text(json.dumps(content), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class VisitorClip:
    """A visitor's clip. name: as he knows it; path: of the file or folder that is read; picture: (H, W) of its
    pictures; count: how many there are; fps; source, target: what an example begins with.
    """

    id: str
    name: str
    path: str
    picture: tuple[int, int]
    count: int
    fps: float
    source: str = ""
    target: str = ""

    @property
    def here(self) -> bool:
        """Is the file still there?"""
        return Path(self.path).exists()


class Visitor:
    """A visitor's folder."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name

    def place(self, clip: str) -> Path:
        """The folder of a clip. Raises FzError for an id that is none."""
        if not ID.fullmatch(clip):
            raise FzError("This clip is not here. Choose one above.")
        return self.path / clip

    def clip(self, clip: str) -> VisitorClip:
        """Raises FzError for one that the visitor has not."""
        about = read_json(self.place(clip) / "clip.json")
        try:
            return VisitorClip(**{**about, "picture": tuple(about["picture"])})
        except (KeyError, TypeError):
            raise FzError("This clip is not here. Choose one above.") from None

    def keep(self, clip: VisitorClip) -> None:
        write_json(self.place(clip.id) / "clip.json", asdict(clip))
        write_json(self.path / "last.json", {"clip": clip.id})

    def last(self) -> str:
        return str(read_json(self.path / "last.json").get("clip", ""))

    def results(self, clip: str) -> list[str]:
        """Ids of finished results, the newest first."""
        places = [p.parent for p in self.place(clip).glob("results/*/about.json") if ID.fullmatch(p.parent.name)]
        return [place.name for place in sorted(places, key=lambda p: p.stat().st_mtime_ns, reverse=True)]

    def result(self, clip: str, result: str) -> Path:
        """The folder of a result. Raises FzError for one that the visitor has not."""
        place = self.place(clip) / "results" / result
        if not ID.fullmatch(result) or not (place / "about.json").is_file():
            raise FzError("This result is not here any more.")
        return place


class Folder:
    """All that the server keeps; one server at a time has it. Raises FzError where it cannot be written."""

    def __init__(self, root: Path, upload_limit: int):
        self.root, self.upload_limit = root, upload_limit
        self.visitors, self.cache, self.examples = root / "visitors", root / "inversions", root / "examples"
        try:
            for folder in (self.visitors, self.cache, self.examples):
                folder.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            self.lock = Lock(root, "folder")
        except Busy as busy:
            who = str(busy).partition(" is being written by ")[2].partition(". ")[0]
            raise FzError(f"folder: {root} is in use by {who}. Stop that server, or pass another --folder.") from None
        except OSError as error:
            raise FzError(f"folder: {root} cannot be written ({error.strerror}). Pass another --folder.") from error

    def visitor(self, secret: str | None) -> Visitor:
        """Raises FzError for a browser that sends no secret."""
        if not secret or not re.fullmatch(r"[\w-]{20,80}", secret):
            raise FzError("Your browser sent no cookie. Allow cookies for this page, and load it again.")
        return Visitor(self.visitors / hashlib.sha256(secret.encode()).hexdigest()[:32])

    def newest(self) -> list[tuple[Visitor, str, str]]:
        """All results as (visitor, clip's id, result's id), the newest first."""
        found = sorted(self.visitors.glob("*/*/results/*/about.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        places = [path.parent for path in found]
        return [(Visitor(place.parents[2]), place.parents[1].name, place.name) for place in places]

    def told(self, line: str) -> str:
        """An error's line for visitors: in the page's words, files by their names, none of the server's folders."""
        line = wording.for_visitors(re.sub(rf"{re.escape(str(self.root))}[^\s,:;)]*/", "", line))
        line = line.replace("Free space there or pass another out", "Try again later")
        return line.replace("Pass another out", "Try again")

    # ---- uploads -------------------------------------------------------------------------------------------

    def batch(self, visitor: Visitor, batch: str) -> Path:
        """The folder of an upload that is under way. Raises FzError for a name that is none."""
        if not ID.fullmatch(batch):
            raise FzError("upload: got no proper name for it. Load the page again.")
        return visitor.place(batch) / "upload"

    def room(self, place: Path, name: str) -> tuple[Path, int]:
        """Where a file of an upload goes, and how many bytes it may have. Raises FzError where there is no room."""
        there = [p for p in place.iterdir() if p.is_file()] if place.is_dir() else []
        if len(there) >= MOST_FILES:
            raise FzError(f"upload: got more than {MOST_FILES} files, expected a video or fewer pictures.")
        left = self.upload_limit - sum(p.stat().st_size for p in there)
        if left <= 0 or shutil.disk_usage(self.root).free < FREE + left:
            raise FzError("upload: there is no room for it on the server. Try a shorter clip, or later.")
        place.mkdir(parents=True, exist_ok=True)
        return untaken(place, safe_name(name)), left

    def forget(self, now: float | None = None) -> list[Path]:
        """Remove uploads of more than a day ago, the oldest results where all take more than RESULTS_LIMIT, and what
        nobody used for a month. Returns what went.
        """
        now = time.time() if now is None else now
        gone: list[Path] = []
        with contextlib.suppress(OSError):
            for kind in (self.old_uploads(now), self.results_too_many(), self.unused_visitors(now)):
                for place in list(kind):
                    shutil.rmtree(place, ignore_errors=True)
                    gone.append(place)
            gone += self.forget_inversions(now)
        return gone

    def clips(self) -> Iterator[Path]:
        """Visitors' clips. What has none of the names that are given here is the operator's own, and stays."""
        clips = self.visitors.glob("*/*")
        return (clip for clip in clips if VISITOR.fullmatch(clip.parent.name) and ID.fullmatch(clip.name))

    def old_uploads(self, now: float) -> Iterator[Path]:
        """Clips without results as a whole, of others the upload."""
        for upload in (clip / "upload" for clip in self.clips()):
            if upload.is_dir() and now - upload.stat().st_mtime > DAY:
                yield upload if any((upload.parent / "results").glob("*/about.json")) else upload.parent

    def results_too_many(self) -> Iterator[Path]:
        places = (place for clip in self.clips() for place in clip.glob("results/*") if ID.fullmatch(place.name))
        results = sorted(places, key=lambda p: p.stat().st_mtime)
        sizes = {place: size_of(place) for place in results}
        for place in results:
            if sum(sizes.values()) <= RESULTS_LIMIT:
                break
            sizes.pop(place)
            yield place

    def unused_visitors(self, now: float) -> Iterator[Path]:
        """Folders of those who have no result."""
        for visitor in self.visitors.iterdir():
            mine = VISITOR.fullmatch(visitor.name) is not None
            if mine and not any(visitor.glob("*/results/*/about.json")) and now - last_change(visitor) > MONTH:
                yield visitor

    def forget_inversions(self, now: float) -> list[Path]:
        """A clip can be decoded from its inversion. What runs use stays."""
        old = [p for p in self.cache.iterdir() if is_inversion(p) and now - p.stat().st_mtime > MONTH]
        return [inversion for inversion in old if remove_unused(inversion)]


def safe_name(name: str) -> str:
    """A file name with the ending that was given, that no system takes for anything else. What is cut of a long one is
    not its number.
    """
    stem, _, ending = Path(name.replace("\\", "/")).name.rpartition(".")
    stem, ending = (stem, ending) if stem else (ending, "")
    ending = re.sub(r"[^a-z0-9]", "", ending.lower())[:5]
    words = slug(stem, 10**6)
    head = words.rstrip(string.digits)
    number = words[len(head) :][-LONGEST_NUMBER:]
    if len(head.encode()) > LONGEST_NAME:
        head = f"{slug(head, LONGEST_NAME)}{'-' if number else ''}"
    return f"{f'{head}{number}' or 'clip'}.{ending}".rstrip(".")


def part_of(path: Path) -> Path:
    """Where a file lies until all of it is there."""
    return path.with_name(f".{path.name}.part")


def untaken(place: Path, name: str) -> Path:
    """The file of that name, or where an upload has one: with a number, so that it is read after it."""
    path, number = place / name, 1
    while path.exists() or part_of(path).exists():
        number += 1
        # '_' sorts after '.': a.png, a_002.png, b.png
        path = place / f"{Path(name).stem}_{number:03}{Path(name).suffix}"
    return path


def last_change(folder: Path) -> float:
    """Of the folder and all in it, in seconds since the epoch."""
    return max(p.lstat().st_mtime for p in (folder, *folder.rglob("*")))


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in files_in(folder))


def files_in(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
