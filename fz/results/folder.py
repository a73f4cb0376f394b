"""The folder of one run: clips, frames, masks, attention maps as pictures, latents, and `run.json`, which says how they
came about.

Every file appears whole or not at all. `run.json` is written first, with status 'running', and last, with 'done'; it
lists the files, so that a run with other settings is never written over unasked, and replacing one removes no file that
it did not write.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fz.attention import MAP_STRIDE
from fz.clips.media import (
    atomic,
    contact_sheet,
    heat,
    overlay,
    side_by_side,
    to_uint8,
    write_gif,
    write_json,
    write_mp4,
    write_png,
    write_pngs,
)
from fz.clips.video import Video
from fz.ddim import Schedule
from fz.errors import FzError
from fz.prompts.text import Tokens
from fz.settings.place import default_path, slug
from fz.source import Source

if TYPE_CHECKING:
    from fz.results.result import Edited, Result

RUN = "run.json"
# settings that do not change what is computed
INCIDENTAL = ("out", "overwrite", "dry_run", "save_latents", "report", "cache")


@dataclasses.dataclass
class ResultFolder:
    """Where a run writes. Made by `claim`, which refuses a folder that holds something else."""

    path: Path
    files: list[str] = dataclasses.field(default_factory=list)
    latents: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    started: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def claim(cls, settings: Any) -> "ResultFolder":
        """The folder of these settings, `settings.out` or a name made of clip and target. Raises FzError if it is taken
        or not writable.
        """
        path = Path(settings.out) if settings.out else default_path(settings)
        if path.exists() and not path.is_dir():
            raise FzError(f"out: {path} is a file, expected a folder. Pass another --out.")
        if path.is_dir() and any(path.iterdir()) and not settings.overwrite:
            before = read_run(path)
            if before is None:
                raise FzError(
                    f"out: {path} holds other files. Pass another --out, or --overwrite to write there all the same."
                )
            if before.get("settings") != as_json(settings):
                raise FzError(
                    f"out: {path} holds a run with other settings. Pass another --out, or --overwrite to replace it."
                )
        if not settings.dry_run:
            writable(path)
        return cls(path)

    def __enter__(self) -> "ResultFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pass

    def start(self, settings: Any) -> None:
        """Remove what an earlier run listed, and write `run.json` with status 'running'."""
        for name in (read_run(self.path) or {}).get("files", []):
            # names come from a file: never follow one out of the folder
            if not Path(name).is_absolute() and ".." not in Path(name).parts:
                (self.path / name).unlink(missing_ok=True)
        # what a run that was killed had half written
        for part in list(self.path.rglob(".*.part")):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.settings = as_json(settings)
        self.write_running()

    def write_source(self, video: Video, source: Source, tokens: Tokens, schedule: Schedule) -> None:
        """The clip as the model saw it, and each of its words' attention averaged over steps, if it was inverted."""
        frames = to_uint8(video.frames)
        self.write_clip("source", frames, video.fps)
        if not source.maps:
            self.write_running()
            return
        h, w = (side // MAP_STRIDE for side in next(iter(source.latents.values())).shape[-2:])
        maps = torch.stack([source.maps[t] for t in schedule.timesteps]).mean(0).cpu()  # (F, N, 77)
        rows, labels = [], []
        for word in tokens.words:
            word_map = maps[..., list(word.positions)].sum(-1).unflatten(1, (h, w))
            name = f"attention/{word.index:02d}-{slug(word.text, 24)}.png"
            self.picture(name, contact_sheet([overlay(frames, word_map)], [word.text]))
            rows.append(heat(word_map))
            labels.append(word.text)
        if rows:
            self.picture("attention/all-words.png", contact_sheet(rows, labels))
        self.write_running()

    def write_edit(self, i: int, video: Video, edited: "Edited") -> None:
        """The edited clip, beside its source, and its blend masks: a contact sheet a step for the largest mask."""
        source, frames = to_uint8(video.frames), to_uint8(edited.frames)
        self.write_clip(f"edit-{i}", frames, video.fps)
        pair = side_by_side([source, frames], ["source", edited.target])
        self.clip(f"side-by-side-{i}.mp4", pair, video.fps)
        for k, masks in edited.masks.items():
            size = max(masks)
            self.picture(
                f"masks/edit-{i}-step-{k:03d}.png", contact_sheet([overlay(source, masks[size].cpu())], [f"step {k}"])
            )
        self.write_running()

    def write_clip(self, name: str, frames: Any, fps: float) -> None:
        self.clip(f"{name}.mp4", frames, fps)
        write_gif(self.path / f"{name}.gif", frames, fps)
        write_pngs(self.path / "frames" / name, frames)
        self.files += [f"{name}.gif", *(f"frames/{name}/{i:05d}.png" for i in range(len(frames)))]

    def clip(self, name: str, frames: Any, fps: float) -> None:
        write_mp4(self.path / name, frames, fps)
        self.files.append(name)

    def picture(self, name: str, picture: Any) -> None:
        write_png(self.path / name, picture)
        self.files.append(name)

    def add_latents(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into `latents.safetensors`, (F, 4, h, w) float32 and masks uint8; the file is whole after every
        call.
        """
        self.latents |= {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        with atomic(self.path / "latents.safetensors") as part:
            save_file(self.latents, part)
        self.files = [*(f for f in self.files if f != "latents.safetensors"), "latents.safetensors"]

    def finish(self, result: "Result", versions: Mapping[str, str]) -> None:
        self.write_run(
            {
                "status": "done",
                "settings": self.settings,
                "started": self.started,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "notes": result.notes,
                "frames": list(result.video.indices),
                "fps": result.video.fps,
                "versions": versions,
                "stages": result.stages,
                "files": sorted(self.files),
            }
        )

    def write_running(self) -> None:
        self.write_run(
            {"status": "running", "settings": self.settings, "started": self.started, "files": sorted(self.files)}
        )

    def write_run(self, content: Mapping[str, Any]) -> None:
        write_json(self.path / RUN, content)


def as_json(settings: Any) -> dict[str, Any]:
    """What decides the results, as JSON would give it back."""
    content = {k: v for k, v in dataclasses.asdict(settings).items() if k not in (*INCIDENTAL, "notes")}
    return json.loads(json.dumps(content))


def read_run(path: Path) -> dict[str, Any] | None:
    """The folder's run.json; None where there is none that can be read."""
    try:
        content = json.loads((path / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def writable(path: Path) -> None:
    """Make the folder and write a file in it, so that a run finds out now and not at its end."""
    probe = path / f".probe-{time.time_ns()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FzError(f"out: {path} cannot be written ({error.strerror or error}). Pass another --out.") from error
