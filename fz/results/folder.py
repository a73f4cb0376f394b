"""The folder of one run: clips, frames, masks, attention maps as pictures, latents, and `run.json`, which says how they
came about.

Every file appears whole or not at all, and `run.json` lists it before it is written: a file that is not listed is the
user's, and stays. A run that replaces another writes beside it, in STAGE, and what was there goes only when all of the
new is complete; a swap that was cut short is finished by the next run. One run writes at a time (`fz.results.lock`).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fz.attention import MAP_STRIDE
from fz.clips.media import (
    contact_sheet,
    enlarged,
    heat,
    overlay,
    side_by_side,
    to_uint8,
    write_gif,
    write_json,
    write_mp4,
    write_png,
)
from fz.clips.video import Video
from fz.ddim import Schedule
from fz.errors import FzError
from fz.prompts.text import Tokens
from fz.results import own
from fz.results.claim import RUN, STAGE, Claim, as_json, claimed, read_run, unlisted
from fz.results.inputs import stamp_of
from fz.settings.place import default_path, slug
from fz.source import Source
from fz.tensors import write_safetensors

if TYPE_CHECKING:
    from fz.results.result import Edited, Result


@dataclasses.dataclass
class ResultFolder:
    """Where a run writes. Made by `claim`, which refuses a folder that holds something else; a context, at whose end
    the folder is free for others. path: the results; work: where files are written until they are complete.
    """

    path: Path
    held: Claim
    files: list[str] = dataclasses.field(default_factory=list)
    latents: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    started: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    work: Path | None = None
    stamp: str = ""
    before: frozenset[str] = frozenset()  # files that an earlier run listed in `path`

    @classmethod
    def claim(cls, settings: Any) -> "ResultFolder":
        """The folder of these settings, `settings.out` or a name made of clip and target. Raises FzError if it is taken
        or not writable.
        """
        held = claimed(settings)
        return cls(held.path, held)

    def __enter__(self) -> "ResultFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # an error before anything was computed leaves nothing; an interrupt leaves what the same command goes on with
        if self.work and kind is not None and issubclass(kind, Exception) and not self.files:
            if self.work != self.path or not self.held.listed:
                own.remove(self.work, [RUN])
            if self.work != self.path:
                own.unmake([self.work])
        self.held.release()

    def start(self, settings: Any) -> None:
        """Write `run.json` with status 'running': beside a complete run, which stays until this one is."""
        before = read_run(self.path)
        self.before = frozenset(before["files"] if before else ())
        self.settings, self.stamp = as_json(settings), stamp_of(settings)
        goes_on = before is None or (before["status"] == "running" and before["settings"] == self.settings)
        self.work = self.path if goes_on else self.path / STAGE
        left = read_run(self.work)
        if left is not None and left["settings"] != self.settings:
            own.remove(self.work, [*left["files"], RUN])
            left = None
        self.held.listed = list(left["files"]) if left else []
        own.remove_halves(self.work, self.held.listed)
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.write_running()

    def reserve(self, *names: str) -> list[Path]:
        """The places of files that are about to be written, listed from now on. Raises FzError for a place that is the
        user's.
        """
        places = [own.inside(self.work, name) for name in names]
        for name, place in zip(names, places, strict=True):
            if place is None or own.inside(self.path, name) is None:
                raise FzError(
                    f"out: {self.path / name} is reached through a link. Take the link away, or pass another --out."
                )
        if new := [name for name in names if name not in self.files]:
            for name in new:
                if name not in self.before and (self.path / name).exists():
                    raise unlisted(self.path / name)
            self.files += new
            self.write_running()
        return places

    def write_source(self, video: Video, source: Source, tokens: Tokens, schedule: Schedule) -> None:
        """The clip as the model saw it, and each of its words' attention averaged over steps, if it was inverted."""
        frames = to_uint8(video.frames)
        self.write_clip("source", frames, video)
        if not source.maps:
            return
        h, w = (side // MAP_STRIDE for side in next(iter(source.latents.values())).shape[-2:])
        maps = torch.stack([source.maps[t] for t in schedule.timesteps]).mean(0).cpu()  # (F, N, 77)
        rows, labels = [], []
        for word in tokens.words:
            word_map = maps[..., list(word.core)].sum(-1).unflatten(1, (h, w))
            name = f"attention/{word.index:02d}-{slug(word.text, 24)}.png"
            self.picture(name, contact_sheet([overlay(frames, word_map)], [word.text]))
            rows.append(enlarged(heat(word_map), frames.shape[2]))
            labels.append(word.text)
        if rows:
            self.picture("attention/all-words.png", contact_sheet(rows, labels))

    def write_edit(self, i: int, video: Video, edited: "Edited") -> None:
        """The edited clip, beside its source, and its blend masks: a contact sheet a step for the largest mask."""
        source, frames = to_uint8(video.frames), to_uint8(edited.frames)
        self.write_clip(f"edit-{i}", frames, video)
        pair = side_by_side([source, frames], ["source", edited.target])
        self.clip(f"side-by-side-{i}.mp4", pair, video)
        for k, masks in edited.masks.items():
            size = max(masks)
            self.picture(
                f"masks/edit-{i}-step-{k:03d}.png", contact_sheet([overlay(source, masks[size].cpu())], [f"step {k}"])
            )

    def write_clip(self, name: str, frames: Any, video: Video) -> None:
        self.clip(f"{name}.mp4", frames, video)
        (gif,) = self.reserve(f"{name}.gif")
        write_gif(gif, frames, video.fps)
        # one by one: what else is in their folder is the user's
        for place, frame in zip(self.reserve(*frame_names(name, len(frames))), frames, strict=True):
            write_png(place, frame)

    def clip(self, name: str, frames: Any, video: Video) -> None:
        (place,) = self.reserve(name)
        write_mp4(place, frames, video.fps, video.sound, video.colours)

    def picture(self, name: str, picture: Any) -> None:
        (place,) = self.reserve(name)
        write_png(place, picture)

    def add_latents(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into `latents.safetensors`, (F, 4, h, w) float32 and masks uint8; the file is whole after every
        call. Raises FzError where there is no room for them.
        """
        self.latents |= {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        (place,) = self.reserve("latents.safetensors")
        write_safetensors(place, self.latents)

    def finish(self, result: "Result", versions: Mapping[str, str], awaits: Sequence[str] = ()) -> None:
        """Everything is written but the files that the run `awaits`, as its report: with those it is done when
        `fz.results.beside` says so.
        """
        self.write_run(
            {
                **({"status": "finishing", "awaits": list(awaits)} if awaits else {"status": "done"}),
                "settings": self.settings,
                "inputs": self.stamp,
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
        self.held.swap(self.work)

    def write_running(self) -> None:
        files = sorted({*self.files, *self.held.listed})
        self.write_run({"status": "running", "settings": self.settings, "started": self.started, "files": files})

    def write_run(self, content: Mapping[str, Any]) -> None:
        write_json(self.work / RUN, content)


class NoFolder:
    """Where a process writes whose results another one writes: nowhere."""

    path = None

    def __enter__(self) -> "NoFolder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def nothing(self, *content: Any, **more: Any) -> None:
        pass

    start = write_source = write_edit = add_latents = finish = nothing


def frame_names(name: str, count: int) -> list[str]:
    return [f"frames/{name}/{i:05d}.png" for i in range(count)]


__all__ = ["RUN", "NoFolder", "ResultFolder", "as_json", "default_path", "read_run", "slug"]
