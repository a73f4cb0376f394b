"""Which jobs does a batch have? Those of a YAML or CSV, of a folder of released configs, or of a benchmark.

A job is a command line of `fz.run`, so that every name means here what it means there. Paths are looked for beside the
jobs' file first. Benchmarks' layouts are `fz.settings.benchmarks`' question.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz.errors import FzError, suggest
from fz.settings import benchmarks, safe_yaml
from fz.settings.benchmarks import Row, beside
from fz.settings.config import Settings
from fz.settings.flags import FLAGS, Flag
from fz.settings.parse import parse
from fz.settings.place import absent, expanded, slug
from fz.settings.texts import (
    crop,
    factor_of_word,
    file_of_strength,
    file_of_word,
    frame_index,
    gradients,
    share,
    share_of_word,
)

MOST_JOBS = 10_000
MOST_BYTES = 10_000_000
OWN = ("name", "masks", "set")  # of a job, beside the flags of fz.run
RENAMED = {"clip": "video", "targets": "target"}
# the batch says where results go and what a dry run is
OF_THE_BATCH = ("out", "overwrite", "dry-run", "clip-model", "verbose", "debug")
OF_ONE_RUN = ("sweep", "list-words", "shard")
PATHS = ("video", "mask", "config", "checkpoint", "vae", "tokenizer", "model-config", "control", "control-video")
PHRASES = ("remove", "enhance")  # words, or several with commas between
WITH_VALUE = ("lora", "embedding")  # paths that may be followed by '=' and a strength or a word
SEVERAL = "|"  # between the values of one cell
# what may be a list: texts with commas between; what may be names and values: texts with = between
WITH_COMMAS = (gradients, crop, frame_index, share, share_of_word)
WITH_NAMES = (factor_of_word, file_of_strength, file_of_word, share_of_word)
BY_NAME: Mapping[str, Flag] = {flag.name: flag for group in FLAGS.values() for flag in group}
KEYS = (*(name for name in (*BY_NAME, "config") if name not in OF_THE_BATCH), *RENAMED, *OWN)


@dataclass(frozen=True)
class Job:
    """One run of a batch. name: its folder; argv: of `fz.run`, without --out; masks: pictures that are white where the
    edit should be, for measuring; error: why it cannot be run, in one line.
    """

    name: str
    argv: tuple[str, ...]
    masks: str | None = None
    error: str | None = None

    def settings(self, out: Path, dry_run: bool = False) -> Settings:
        """Raises FzError for what fz.run would refuse."""
        if self.error:
            raise FzError(self.error)
        argv = [*self.argv, "--out", str(out / self.name), *(["--dry-run"] if dry_run else [])]
        return parse(argv, notes_idle=True).settings


def read_jobs(path: str, extra: Sequence[str] = (), edit_masks: bool = False) -> list[Job]:
    """The jobs at a path, in their order. extra: flags of fz.run for all of them, over what the files say. edit_masks:
    masks of a benchmark are where the clips are edited, too, not only where results are measured.

    Raises FzError for a path at which there are no jobs; a job that cannot be gets an error instead.
    """
    place = expanded(path, "jobs")
    if not place.exists():
        raise FzError(f"jobs: {path} {absent(place)}. Expected a YAML or CSV of jobs, or a folder of configs or data.")
    rows = rows_of(place)
    if not rows:
        raise FzError(f"jobs: {path} has no jobs, expected at least one clip, source and target.")
    if len(rows) > MOST_JOBS:
        raise FzError(f"jobs: {path} has {len(rows)} jobs, expected at most {MOST_JOBS}. Write several files.")
    given = {found[1] for arg in extra if (found := re.match(r"--([a-z][a-z.\d-]*)", arg))}
    return named([job_of(row, extra, given, edit_masks) for row in rows])


def rows_of(place: Path) -> list[Row]:
    """What the files say of each job."""
    if (found := benchmarks.found(place)) is not None:
        return found
    if place.is_dir():
        return benchmarks.released_configs(place)
    if place.suffix.lower() == ".csv":
        return csv_rows(place)
    content = safe_yaml.read_file(place, MOST_BYTES, "jobs", numbers=False)
    if isinstance(content, dict) and "jobs" not in content and "editing_config" in content:
        return [Row(place.stem, {"config": str(place)}, place.parent)]
    if isinstance(content, dict) and "jobs" in content and (strange := set(map(str, content)) - {"jobs", "shared"}):
        name = sorted(strange)[0]
        raise FzError(f"jobs: {place} has {name!r} beside jobs, expected jobs and shared.{suggest(name, ['shared'])}")
    jobs = content.get("jobs") if isinstance(content, dict) else content
    shared = (content.get("shared") or {}) if isinstance(content, dict) else {}
    if not isinstance(jobs, list) or not isinstance(shared, dict):
        raise FzError(f"jobs: {place} is no list of jobs. Expected jobs: a list of clip, source, targets; and shared:.")
    arguments(shared, place.parent)  # a mistake in what all share is said at once
    rows = []
    for number, job in enumerate(jobs, start=1):
        if not isinstance(job, dict):
            raise FzError(f"jobs: {place}, job {number} is {job!r:.60}, expected names: clip, source, targets.")
        try:
            rows.append(Row(f"job {number}", over(shared, job), place.parent))
        except FzError as error:
            raise FzError(f"jobs: {place}, job {number}: {error}") from None
    return rows


def over(shared: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[str, Any]:
    """A job's settings over the shared ones, by the names of flags. Raises FzError for one that is said twice."""
    return {**by_flag(shared), **by_flag(own)}


def by_flag(given: Mapping[Any, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for key, value in given.items():
        name = usual(key)
        if name in out:
            raise FzError(
                f"got both {str(said[name])!r} and {str(key)!r}, which are one setting, expected one of them."
            )
        out[name], said[name] = value, key
    return out


def usual(key: Any) -> str:
    """A key as flags are called: least_sc_channel is least-sc-channel."""
    name = str(key).strip().replace("_", "-")
    return RENAMED.get(name, name)


def unnumbered(name: str) -> str:
    """A flag's name without the edit's number: threshold.1 is threshold."""
    return re.sub(r"\.\d{1,4}$", "", name)


def csv_rows(place: Path) -> list[Row]:
    """A row a job, below names of flags; empty cells are not given."""
    try:
        with place.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise FzError(f"jobs: {place} cannot be read ({why}). Expected a CSV in UTF-8.") from error
    if len(content) > MOST_BYTES or "\0" in text:
        raise FzError(f"jobs: {place} is larger than {MOST_BYTES} bytes or holds null bytes, expected a CSV of jobs.")
    try:
        # every kind of line end is one
        rows = csv.reader(io.StringIO(text, newline=None), strict=True)
        lines = [trimmed(row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise FzError(f"jobs: {place} is no CSV ({error}). Expected cells with commas in them in quotes.") from error
    if not lines:
        return []
    names = [usual(cell) for cell in lines[0]]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise FzError(f"jobs: {place} has two columns {twice[0]!r}, expected one; several values stand in one cell, "
                      f"with {SEVERAL} between them.")  # fmt: skip
    for name in names:
        try:
            check_key(name)
        except FzError as error:
            raise FzError(f"jobs: {place}, first row: {error}{separated(lines[0])}") from None
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        if len(line) > len(names):
            raise FzError(
                f"jobs: {place}, row {number} has {len(line)} cells, expected {len(names)}, as the first row. Put "
                "cells with commas in quotes."
            )
        cells = {name: cell.strip() for name, cell in zip(names, line, strict=False) if cell.strip()}
        several = {n: parts_of(c) if splits(n) and SEVERAL in c else c for n, c in cells.items()}
        rows.append(Row(f"row {number}", several, place.parent))
    return rows


def parts_of(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(SEVERAL) if part.strip()]


def trimmed(row: list[str]) -> list[str]:
    """A row without empty cells at its end, which spreadsheets write."""
    return row[: max(i for i, cell in enumerate(row, start=1) if cell.strip())]


def separated(row: list[str]) -> str:
    """What to say of a first row with something else than commas between its names."""
    mark = next((mark for mark in (";", "\t") if len(row) == 1 and mark in row[0]), None)
    return f" The names are separated by {mark!r}, expected commas." if mark else ""


def splits(name: str) -> bool:
    flag = BY_NAME.get(unnumbered(name))
    return name == "set" or (flag is not None and (flag.many or flag.nargs is not None))


def check_key(name: str) -> None:
    """Raise FzError for what is no name of a job's."""
    plain = unnumbered(name)
    if plain in OF_THE_BATCH:
        raise FzError(f"job: got {plain!r}, which the batch decides. Leave it out; `name` is a job's folder.")
    if plain in OF_ONE_RUN:
        raise FzError(f"job: got {plain!r}, which is about one run. Use fz.run.")
    if plain not in KEYS or (plain != name and not BY_NAME[plain].edit):
        raise FzError(f"job: unknown name {name!r}, expected flags of fz.run, as source.{suggest(plain, KEYS)}")


def arguments(given: Mapping[Any, Any], folder: Path) -> list[str]:
    """The flags that say what a job's names and values do. Raises FzError for what none can say."""
    out: list[str] = []
    for key, value in given.items():
        name = usual(key)
        check_key(name)
        if value is None or name in ("name", "masks"):
            continue
        plain = unnumbered(name)
        for text in texts(plain, value):
            if plain in PATHS and isinstance(text, str) and (plain, text) != ("control-video", "canny"):
                text = beside(folder, text)
            if plain in WITH_VALUE:
                text = file_beside(folder, text)
            out += [f"--{name}"] if text is True else words(f"--{name}", text)
    return out


def file_beside(folder: Path, text: str) -> str:
    """As `beside`, of a path that a value may follow."""
    if (whole := beside(folder, text)) != text or "=" not in text:
        return whole
    path, _, value = text.rpartition("=")
    return f"{beside(folder, path)}={value}"


def words(flag: str, text: str | tuple[str, ...]) -> list[str]:
    if isinstance(text, tuple):
        return [flag, *text]
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def texts(name: str, value: Any) -> list[Any]:
    """A value as texts of a flag, one for each time that it is given; True for a switch."""
    flag = BY_NAME.get(name)
    if flag is not None and flag.parse is None:
        known = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
        switched = known.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(switched, bool):
            raise FzError(f"{name}: got {value!r}, expected true or false.")
        return [True] if switched else []
    if isinstance(value, bool):
        raise FzError(f"{name}: got {value!r}, expected a value, as on the command line.")
    if isinstance(value, dict):
        if flag is None or flag.parse not in WITH_NAMES:
            raise FzError(f"{name}: got names and values, expected a value, as on the command line.")
        return [f"{word}={plain(name, factor)}" for word, factor in value.items()]
    if name == "set" or (flag is not None and flag.many and name != "cross-replace"):
        return [plain(name, entry) for entry in (value if isinstance(value, list) else [value])]
    if flag is not None and flag.nargs is not None:
        groups = value if isinstance(value, list) else [value]
        return [tuple(" ".join(map(str, g)) if isinstance(g, list) else plain(name, g) for g in groups)]
    if name == "cross-replace" and isinstance(value, list) and any("=" in str(entry) for entry in value):
        return [plain(name, entry) for entry in value]
    return [plain(name, value)]


def plain(name: str, value: Any) -> str:
    if isinstance(value, list) and name == "size" and len(value) == 2:
        return "x".join(map(str, value))
    flag = BY_NAME.get(name)
    listed = flag is not None and (flag.parse in WITH_COMMAS or flag.nargs is not None or name in PHRASES)
    if listed and isinstance(value, list) and not any(isinstance(entry, (list, dict)) for entry in value):
        return ",".join(map(str, value))
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise FzError(f"{name}: got {value!r:.60}, expected a value, as on the command line.")
    return str(value)


def job_of(row: Row, extra: Sequence[str], given: set[str], edit_masks: bool) -> tuple[Row, Job]:
    """A row and its job, whose name is not settled yet."""
    # changes of a config add up; whatever else the command line says, of one edit or of all, it says alone
    said = given - {"set"}
    content = {usual(key): value for key, value in row.content.items()}
    content = {name: value for name, value in content.items() if not said & {name, unnumbered(name)}}
    name, masks = content.get("name"), content.get("masks")
    try:
        if not all(value is None or (isinstance(value, str) and value.strip()) for value in (name, masks)):
            raise FzError("job: got an empty name or masks, or one that is no text, expected text.")
        masks = None if masks is None else beside(row.folder, masks)
        # fz.run without one takes the bundled example
        if not (content.get("video") or content.get("config") or "video" in given):
            raise FzError("job: got no clip, expected a video or a folder of images, as clip: jeep.mp4.")
        if masks is not None and edit_masks and "mask" not in content:
            content["mask"] = masks
        argv = (*arguments(content, row.folder), *extra)
    except FzError as error:
        return row, Job(str(name or ""), (), None, f"{row.where}: {error}")
    return row, Job(str(name or ""), argv, masks)


def named(found: Iterable[tuple[Row, Job]]) -> list[Job]:
    """The jobs with names of folders of their own: those given, else of what they are."""
    # where failures are noted
    taken = {"failed"}
    jobs = []
    for row, job in found:
        base = slug(job.name, 100) or slug(called(row), 100) or "job"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        jobs.append(Job(name, job.argv, job.masks, job.error))
    return jobs


def called(row: Row) -> str:
    content = {usual(key): value for key, value in row.content.items()}
    if row.name:
        return row.name
    clip = Path(str(content.get("video") or content.get("config") or "")).stem
    target = content.get("target")
    first = target[0] if isinstance(target, list) and target else target
    return " ".join(str(part)[:60] for part in (clip, first) if part) or row.where
