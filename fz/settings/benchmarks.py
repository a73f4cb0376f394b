"""Which clips, sources and targets does a benchmark have? Read from its files as they were published.

TGVE 2023 (LOVEU-TGVE-2023_Dataset.csv and frames or videos by where they come from; 76 clips, 4 targets each), V2VBench
(config.yaml and videos; arXiv 2407.07111), FiVE (edit_prompt/edit1…6_FiVE.json, images or videos, bmasks; arXiv
2503.13684) and FateZero's own (config/ and data/). Targets of one clip under one source are one job: one inversion
serves them.
"""

import csv
import glob
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings import safe_yaml

TGVE = "LOVEU-TGVE-2023_Dataset.csv"
TGVE_CLIP, TGVE_SOURCE = "Video name", "Our GT caption"
TGVE_TARGETS = (
    "Style Change Caption",
    "Object Change Caption",
    "Background Change Caption",
    "Multiple Changes Caption",
)
TGVE_FOLDERS = ("DAVIS_480p", "youtube_480p", "videvo_480p")
FIVE = "edit*_FiVE.json"
MOST_BYTES = 10_000_000
VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".avi", ".mkv")


@dataclass(frozen=True)
class Row:
    """What files say of a job. where: the place, for people; content: by names of flags; folder: beside which its paths
    are; name: of its results.
    """

    where: str
    content: Mapping[str, Any]
    folder: Path
    name: str = ""


def found(place: Path) -> list[Row] | None:
    """The rows of the benchmark whose folder, or file of prompts, this is; None where it is none."""
    root = place if place.is_dir() else place.parent
    if (place.is_dir() and (place / TGVE).is_file()) or place.name == TGVE:
        return tgve(root)
    if place.is_dir() and (prompts := sorted((place / "edit_prompt").glob(FIVE))):
        return five(root, prompts)
    if place.is_dir() and sorted((place / "data" / "edit_prompt").glob(FIVE)):
        return found(place / "data")
    if place.is_file() and place.match(FIVE):
        return five(root.parent, [place])
    if (place.is_dir() and (place / "config.yaml").is_file()) or place.name == "config.yaml":
        content = safe_yaml.read_file(root / "config.yaml", MOST_BYTES, "jobs", numbers=False)
        if isinstance(content, dict) and isinstance(content.get("data"), list):
            return v2vbench(root, content["data"])
    return None


def beside(folder: Path, path: str) -> str:
    """The path within a folder where something is there, or a glob finds something; else as it is."""
    try:
        if Path(path).is_absolute() or not path.strip() or path.startswith("~"):
            return path
        if (folder / path).exists():
            return str(folder / path)
        # the folder's own name is no pattern
        pattern = str(Path(glob.escape(str(folder))) / path)
        if glob.has_magic(path) and any(True for _ in glob.iglob(pattern)):
            return pattern
    except (OSError, ValueError):
        pass
    return path


def clip_in(folders: list[Path], name: str) -> str | None:
    """The folder of frames, or else the video, of that name in the first of the folders that has one."""
    # names come from files: none leads out of its folder
    if not name or Path(name).name != name:
        return None
    for folder in folders:
        place = folder / name
        if place.is_dir():
            return str(place)
        for ending in VIDEOS:
            if (video := folder / f"{name}{ending}").is_file():
                return str(video)
    return None


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FzError(f"jobs: {where} has {value!r:.60} as {key}, expected a sentence or a name.")
    return value.strip()


def tgve(root: Path) -> list[Row]:
    """TGVE 2023: a row a clip, below rows that name where the next clips are from."""
    file = root / TGVE
    try:
        lines = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig", errors="replace"))))
    except (OSError, csv.Error) as error:
        raise FzError(f"jobs: {file} cannot be read ({error}). Expected TGVE 2023's table.") from error
    if not lines or (lacking := [n for n in (TGVE_CLIP, TGVE_SOURCE, *TGVE_TARGETS) if n not in lines[0]]):
        what = f"no column {lacking[0]!r}" if lines else "no rows"
        raise FzError(f"jobs: {file} has {what}, expected TGVE 2023's table.")
    rows = []
    for number, line in enumerate(lines, start=2):
        name, source = ((line.get(key) or "").strip() for key in (TGVE_CLIP, TGVE_SOURCE))
        if not name or not source:
            continue  # an empty row, or one that names a part: 'DAVIS Videos:'
        folders = [root / part / kind for part in TGVE_FOLDERS for kind in ("480p_frames", "480p_videos")]
        clip = clip_in(folders, name) or f"{TGVE_FOLDERS[0]}/480p_frames/{name}"
        targets = [(line.get(key) or "").strip() for key in TGVE_TARGETS]
        content = {"video": clip, "source": source, "target": [t for t in targets if t]}
        rows.append(Row(f"{TGVE}, line {number}", content, root, name))
    return rows


def v2vbench(root: Path, data: list[Any]) -> list[Row]:
    """V2VBench: an entry a clip, each with its prompt and its edits."""
    rows = []
    for number, entry in enumerate(data, start=1):
        where = f"config.yaml, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("edit"), list) or not entry["edit"]:
            raise FzError(f"jobs: {where} has no edits, expected video_id, prompt and edit: a list with prompts.")
        name = text_of(entry, "video_id", where)
        if not all(isinstance(edit, dict) for edit in entry["edit"]):
            raise FzError(f"jobs: {where} has edits without names, expected prompt: in each.")
        targets = [text_of(edit, "prompt", where) for edit in entry["edit"]]
        clip = clip_in([root / "videos", root / "images", root / "frames", root], name) or f"videos/{name}.mp4"
        content = {"video": clip, "source": text_of(entry, "prompt", where), "target": targets}
        rows.append(Row(where, content, root, name))
    return rows


def five(root: Path, prompts: list[Path]) -> list[Row]:
    """FiVE: six files of edits, each of a clip; a clip's masks say where results may differ."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for file in prompts:
        for number, entry in enumerate(json_list(file), start=1):
            where = f"{file.name}, entry {number}"
            if not isinstance(entry, dict):
                raise FzError(f"jobs: {where} is {entry!r:.60}, expected video_name, source_prompt, target_prompt.")
            name, source, target = (text_of(entry, k, where) for k in ("video_name", "source_prompt", "target_prompt"))
            targets = grouped.setdefault((name, source), [])
            if target not in targets:
                targets.append(target)
    rows = []
    for (name, source), targets in grouped.items():
        # masks belong to the pictures
        clip = clip_in([root / "images", root / "videos"], name) or f"videos/{name}.mp4"
        masks = clip_in([root / "bmasks"], name)
        content = {"video": clip, "source": source, "target": targets, **({"masks": masks} if masks else {})}
        rows.append(Row(name, content, root, name))
    return rows


def json_list(file: Path) -> list[Any]:
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(MOST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FzError(f"jobs: {file} cannot be read ({str(error)[:120]}). Expected FiVE's list of edits.") from error
    if not isinstance(content, list):
        raise FzError(f"jobs: {file} is no list, expected FiVE's list of edits.")
    return content


def released_configs(folder: Path) -> list[Row]:
    """Configs of the released code, in all folders below one; its paths are from the checkout's root. Those that tune
    and edit nothing are left out.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".yaml", ".yml") and p.is_file())
    rows = []
    for file in files:
        try:
            content = safe_yaml.read_file(file)
        except FzError:  # the job's own line says so
            rows.append(Row(str(file), {"config": str(file)}, file.parent, str(file.relative_to(folder))))
            continue
        if not isinstance(content, dict) or not isinstance(content.get("editing_config"), dict):
            continue
        # train_steps alone is left over in some that edit
        if "trainer_pipeline_config" in content and not content["editing_config"].get("p2p_config"):
            continue
        about: dict[str, Any] = {"config": str(file)}
        dataset = content.get("dataset_config")
        given = {"video": dataset.get("path") if isinstance(dataset, dict) else None}
        given["checkpoint"] = content.get("pretrained_model_path")
        for name, path in given.items():
            if isinstance(path, str) and "${" not in path and (there := above(file, path)) is not None:
                about[name] = there
        rows.append(Row(str(file), about, file.parent, str(file.relative_to(folder).with_suffix(""))))
    if not rows:
        raise FzError(
            f"jobs: {folder} is no layout that fz knows. Expected released configs with editing_config, {TGVE} (TGVE "
            "2023), config.yaml with data (V2VBench), edit_prompt/ (FiVE), or a YAML or CSV of jobs."
        )
    return rows


def above(file: Path, path: str) -> str | None:
    """The path from the nearest folder above a file in which it leads somewhere, two above its own at most."""
    if Path(path).is_absolute():
        return None
    try:
        return next((str(folder / path) for folder in file.resolve().parents[:3] if (folder / path).exists()), None)
    except (OSError, ValueError):
        return None
