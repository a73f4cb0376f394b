"""May a run write into this folder? Only if it is empty, a run's with the same settings, or if it is told to.

Whatever is asked, files that no run listed stay, nothing outside the folder is reached, and a clip that lies among the
results is not written over.
"""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fz import records
from fz.errors import FzError
from fz.records import NUMBER, Each, fits, within
from fz.results import own
from fz.results.differing import brief, differing
from fz.results.inputs import inputs_of
from fz.results.lock import NAME as LOCK
from fz.results.lock import Busy, Lock
from fz.settings.place import default_path, expanded, slug, writable

RUN = "run.json"
# where a run writes that replaces another
STAGE = ".fz-new"
# settings that do not change what is computed
INCIDENTAL = ("out", "overwrite", "dry_run", "save_latents", "report", "cache")
WINDOW = ([NUMBER], NUMBER, None)
EDIT = {
    "target": str,
    "align?": str,
    "cross_replace?": WINDOW,
    "self_replace?": WINDOW,
    "cross_replace_words?": [lambda pair: fits(pair, list) and len(pair) == 2 and fits(pair, [(str, [NUMBER])])],
    "reweight?": [lambda pair: fits(pair, list) and len(pair) == 2 and fits(pair[0], str) and fits(pair[1], NUMBER)],
    "blend_words?": ([[str]], None),
    "threshold?": (*NUMBER, None),
    "blend_latents?": (*NUMBER, None),
    "mask?": (str, None),
    "remove?": (str, None),
    "enhance?": (str, None),
    "lenient?": bool,
}
CROP = {"left": int, "right": int, "top": int, "bottom": int}
CLIP = {
    "path": str,
    "frames?": (int, None),
    "start?": int,
    "every?": int,
    "size?": (int, [int], str),
    "crop?": CROP,
    "fps?": (*NUMBER, None),
    "audio?": bool,
}
SCHEMA = {
    # 'finishing': all but what the run's own command adds, as its report
    "status": {"running", "finishing", "done"},
    "settings": {
        "source?": str,
        "edits?": lambda edits: bool(edits) and fits(edits, [EDIT]),
        "clip?": CLIP,
        "method?": str,
        "checkpoint?": (str, None),
        "frame_index?": ([(int, str)], None),
        "lora?": [lambda pair: fits(pair, list) and len(pair) == 2 and fits(pair[0], str) and fits(pair[1], NUMBER)],
        "embedding?": [lambda pair: fits(pair, [(str, None)]) and len(pair) == 2 and pair[0] is not None],
    },
    "files?": [str],
    "awaits?": [str],
    "inputs?": str,
    "notes?": [str],
    "frames?": [within(0, 10**9)],
    "fps?": (within(1e-6, 1e6), None),
    "versions?": Each(str),
    "stages?": Each(Each((*NUMBER, None))),
}


@dataclasses.dataclass
class Claim:
    """A folder that is this run's to write in. lock None: a dry run's, which writes nothing. made: folders that were
    not there before; listed: files of an earlier run of the same settings, which was killed.
    """

    path: Path
    lock: Lock | None = None
    made: list[Path] = dataclasses.field(default_factory=list)
    listed: list[str] = dataclasses.field(default_factory=list)

    def release(self) -> None:
        if self.lock:
            self.lock.release()
        own.unmake(self.made)

    def swap(self, work: Path) -> None:
        """Put a complete run, in `work`, into its place. Can be done again where it was cut short."""
        new = read_run(work)
        if work == self.path:
            own.remove(work, set(self.listed) - set(new["files"]))
            return
        before = (read_run(self.path) or {"files": []})["files"]
        # from here on the folder says that it is being written
        both = {"status": "running", "settings": new["settings"], "files": sorted({*before, *new["files"]})}
        write(self.path / RUN, both)
        own.move(work, self.path, new["files"])
        own.remove(self.path, set(before) - set(new["files"]))
        own.move(work, self.path, [RUN])
        own.remove(work, [RUN])
        own.remove(work, new["files"])
        own.unmake([work])


def claimed(settings: Any) -> Claim:
    """The folder of these settings, locked until it is released. Raises FzError, having changed nothing, if it is
    taken, or not writable.
    """
    if settings.out:
        return claimed_at(expanded(settings.out, "out"), settings)
    for path in names(settings):
        try:
            return claimed_at(path, settings)
        except Busy as busy:
            # how far the other one is does not matter: it may not have written its settings yet
            if busy.work == work_of(settings):
                raise
    raise AssertionError("there are names without end")


def names(settings: Any) -> Iterator[Path]:
    """Folders for a run that names none: the default one, and where that holds another run, one called by what differs,
    or numbered. The first that is free or holds this very run.
    """
    base, wanted = default_path(settings), as_json(settings)

    def fits(path: Path) -> bool:
        before = read_run(path)
        return settings.overwrite or empty(path) or (before is not None and before["settings"] == wanted)

    if fits(base):
        yield base
    before = read_run(base)
    if before is not None and before["settings"] != wanted:
        told = [
            slug(f"{name.rpartition('.')[2]}-{value}", 24)
            for name, (_, value) in differing(before["settings"], wanted).items()
            if not name.startswith("edits.") and isinstance(value, (str, int, float)) and not isinstance(value, bool)
        ]
        if told and fits(other := base.with_name("-".join([base.name[:150].rstrip("-"), *told[:2]]))):
            yield other
    number = 2
    while True:
        if fits(other := base.with_name(f"{base.name}-{number}")):
            yield other
        number += 1


def claimed_at(path: Path, settings: Any) -> Claim:
    if settings.dry_run:
        check(path, settings)
        return Claim(path)
    if path.exists() and not path.is_dir():
        raise FzError(f"out: {path} is a file, expected a folder. Pass another --out.")
    claim = Claim(path)
    try:
        claim.made = own.made(path)
        claim.lock = Lock(path, work=work_of(settings))
    except OSError as error:
        own.unmake(claim.made)
        raise FzError(f"out: {path} cannot be written ({error.strerror or error}). Pass another --out.") from error
    try:
        # a swap that was cut short
        if (stage := read_run(path / STAGE)) is not None and stage["status"] != "running":
            claim.swap(path / STAGE)
        check(path, settings)
    except BaseException:
        claim.release()
        raise
    return claim


def check(path: Path, settings: Any) -> None:
    """Raise FzError unless a run of these settings may write there."""
    if path.exists() and not path.is_dir():
        raise FzError(f"out: {path} is a file, expected a folder. Pass another --out.")
    before = read_run(path)
    if not empty(path) and not settings.overwrite:
        if before is None:
            raise FzError(
                f"out: {path} holds other files. Pass another --out, or --overwrite to write there all the same."
            )
        if before["settings"] != as_json(settings):
            told = [
                f"{name} {brief(there)} there, {brief(here)} now"
                for name, (there, here) in differing(before["settings"], as_json(settings)).items()
            ]
            more = f", and {len(told) - 3} more" if len(told) > 3 else ""
            raise FzError(
                f"out: {path} holds a run with other settings ({'; '.join(told[:3])}{more}). Pass another --out, or "
                "--overwrite to replace it."
            )
    listed = set(before["files"]) | {RUN} if before else set()
    if path.is_dir():
        for name in foreign(path, listed, len(settings.edits)):
            raise unlisted(path / name)
    check_inputs(path, inputs_of(settings), listed)


def check_inputs(path: Path, inputs: Iterable[tuple[str, str]], listed: set[str]) -> None:
    """Raise FzError for an input, (what it is, its path), among the files that will be written over."""
    for what, given in inputs:
        if name := among(path, given, listed):
            raise FzError(
                f"{what}: {given} is among the results in {path} ({name}), which this run would write over. Pass "
                "another --out, or copy it elsewhere first."
            )


def unlisted(place: Path) -> FzError:
    """What is said of a file of the user's that has a run's name."""
    got = f"out: {place} is no file of a run, and has the name that this run would write"
    return FzError(f"{got}. Move it, or pass another --out.")


def foreign(path: Path, listed: set[str], edits: int) -> Iterator[str]:
    """What is there, by no run, at the places of this run's files: links and files in place of its folders, pictures
    among its own, and files of the same names.
    """
    clips = ["source", *(f"edit-{i}" for i in range(edits))]
    for name in ("frames", "attention", "masks", *(f"frames/{clip}" for clip in clips), STAGE):
        place = path / name
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            yield name
    names = [f"{clip}.{kind}" for clip in clips for kind in ("mp4", "gif")]
    names += [f"side-by-side-{i}.mp4" for i in range(edits)] + [RUN, "latents.safetensors", "report.html"]
    for name in names:
        place = path / name
        if place.is_symlink() or (name not in listed and place.exists()):
            yield name
    pictures = [(f"frames/{clip}", "*.png") for clip in clips]
    pictures += [("attention", "[0-9][0-9]-*.png"), ("attention", "all-words.png"), ("masks", "edit-*-step-*.png")]
    for folder, pattern in pictures:
        for place in sorted((path / folder).glob(pattern)):
            if (name := f"{folder}/{place.name}") not in listed or place.is_symlink():
                yield name


def among(path: Path, given: str, listed: set[str]) -> str | None:
    """The file of a run's, by name, that this input is or holds; None if it has nothing to do with them."""
    try:
        place, root = Path(given).expanduser(), path.resolve()
        while glob.has_magic(str(place)) and not place.exists():
            place = place.parent
        name = place.resolve().relative_to(root).as_posix()
    except (OSError, RuntimeError, ValueError):
        return None
    return next((file for file in sorted(listed) if file == name or file.rpartition("/")[0] == name != ""), None)


def check_early(settings: Any) -> None:
    """`check` of a folder that settings name, before it is known which dtype 'auto' is: that of the run that is there.
    What a swap that was cut short will leave there is not known yet.
    """
    if not settings.out:
        writable(default_path(settings), "out")
        return
    path = writable(settings.out, "out")
    before, stage = read_run(path), read_run(path / STAGE)
    if stage is not None and stage["status"] != "running":
        return
    if before is not None and settings.dtype == "auto" and "dtype" in before["settings"]:
        settings = dataclasses.replace(settings, dtype=before["settings"]["dtype"])
    check(path, settings)


def finished(folder: Path) -> dict[str, Any]:
    """The run.json of a results folder. Raises FzError if it is none, or unfinished."""
    run = read_run(folder)
    settings = (run or {}).get("settings")
    if not isinstance(settings, Mapping) or not {"source", "edits", "clip"} <= settings.keys():
        raise FzError(f"results: {folder} has no {RUN} of a run. Expected a folder that `python -m fz.run` wrote.")
    if run.get("status") not in ("finishing", "done"):
        raise FzError(
            f"results: {folder} is of a run that has not finished. Run its command again; it goes on from its "
            "last step."
        )
    return run


def empty(path: Path) -> bool:
    """Nothing but what a killed run's lock leaves."""
    return not path.is_dir() or not any(p.name != LOCK for p in path.iterdir())


def as_json(settings: Any) -> dict[str, Any]:
    """What decides the results, as JSON would give it back."""
    content = {k: v for k, v in dataclasses.asdict(settings).items() if k not in (*INCIDENTAL, "notes")}
    return json.loads(json.dumps(content))


def work_of(settings: Any) -> str:
    """A hash of what decides the results."""
    return hashlib.sha256(json.dumps(as_json(settings), sort_keys=True).encode()).hexdigest()[:32]


def read_run(path: Path) -> dict[str, Any] | None:
    """The folder's run.json: status, settings, files and more; None where there is none that a run wrote."""
    content = records.read(path / RUN, SCHEMA)
    return None if content is None else {"files": [], **content}


def write(path: Path, content: Mapping[str, Any]) -> None:
    # seconds of imports that settings do without
    from fz.clips.media import write_json

    write_json(path, content)
