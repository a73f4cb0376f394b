"""Is this run done already? Then its pictures are read back, and nothing is computed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fz.clips.video import Video
from fz.results import own
from fz.results.beside import ADDED
from fz.results.claim import as_json, read_run
from fz.results.folder import frame_names
from fz.results.inputs import stamp_of
from fz.results.result import Edited, Result
from fz.settings.config import Settings


def found(path: Path, settings: Settings, versions: Mapping[str, str]) -> Result | None:
    """The result of a finished run in this folder that had the same settings, inputs and versions and left all that is
    asked for: its pictures, without latents and masks; else None.
    """
    run = same_run(path, settings, versions)
    pictures = read_back(path, run) if run else None
    if pictures is None:
        return None
    video, clips = dataclasses.replace(pictures[0], clip=settings.clip), pictures[1]
    notes, stages = run.get("notes", []), run.get("stages", {})
    edits = [
        Edited(dataclasses.replace(settings, edits=(edit,)), shown, [], {}, video.fps, tuple(notes))
        for edit, shown in zip(settings.edits, clips, strict=True)
    ]
    return Result(settings, notes, str(path), video, edits=edits, stages=stages)


def same_run(path: Path, settings: Settings, versions: Mapping[str, str]) -> dict[str, Any] | None:
    """Its run.json."""
    run = read_run(path)
    if settings.overwrite or settings.dry_run or run is None or run["status"] == "running":
        return None
    same = run["settings"] == as_json(settings) and run.get("versions") == dict(versions)
    if not same or run.get("inputs") != stamp_of(settings):
        return None
    if settings.save_latents and "latents.safetensors" not in run["files"]:
        return None
    places = [own.inside(path, name) for name in run["files"] if name not in ADDED]
    return run if all(place is not None and place.is_file() for place in places) else None


def read_back(path: Path, run: Mapping[str, Any]) -> tuple[Video, list[Tensor]] | None:
    """The clip and the frames of each edit, (F, 3, H, W) in [-1, 1], as their pictures have them; None where one cannot
    be read.
    """
    indices, fps = tuple(run.get("frames") or ()), run.get("fps")
    try:
        clips = [
            frames(path, name, len(indices))
            for name in ("source", *(f"edit-{i}" for i in range(len(run["settings"]["edits"]))))
        ]
        return Video(clips[0], float(fps), indices), clips[1:]
    except (OSError, ValueError, TypeError, KeyError, SyntaxError):
        return None


def frames(path: Path, name: str, count: int) -> Tensor:
    pictures = []
    for file in frame_names(name, count):
        with Image.open(path / file, formats=["PNG"]) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
