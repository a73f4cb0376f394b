"""What does a run give back? An edit's frames, latents and masks, and all of the edits of a run."""

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from fz.clips.media import to_uint8, write_gif, write_mp4, write_pngs
from fz.clips.notebook import animation
from fz.clips.video import Video
from fz.ddim import Schedule
from fz.errors import FzError
from fz.settings.config import Settings
from fz.settings.place import expanded
from fz.settings.spoken import spoken
from fz.source import Source

WRITERS = {".mp4": write_mp4, ".gif": write_gif}


# equal only to itself: tensors have no single answer
@dataclass(repr=False, eq=False)
class Edited:
    """One edit's result.

    settings: the run's, with this edit alone. frames: (F, 3, H, W) float32 in [-1, 1]. latents[k]: (F, 4, h, w) after
    k + 1 steps. masks[k]: (h, w) -> (F, h, w) bool, the blend masks of edit step k, True = edited. fps: frames a
    second. notes: what was decided for the user. inversion: a hash of the one that it began with, "" of an edit that
    was read back.
    """

    settings: Settings
    frames: Tensor
    latents: list[Tensor]
    masks: dict[int, dict[tuple[int, int], Tensor]]
    fps: float = 8.0
    notes: tuple[str, ...] = ()
    inversion: str = ""

    @property
    def target(self) -> str:
        """The sentence that the clip was edited to."""
        return self.settings.edits[0].target

    def uint8(self) -> np.ndarray:
        """(F, H, W, 3) uint8."""
        return to_uint8(self.frames)

    @spoken(out="path")
    def save(self, path: str | Path) -> Path:
        """Write the frames: .mp4, .gif, or, without an ending, a folder of PNGs. Missing folders are made, a file of
        that name is replaced, a folder if an edit was saved there before. Returns the path.

        Raises FzError for another ending, for the clip's or the mask's own place, for a folder that holds anything
        else, and where it cannot be written.
        """
        if not isinstance(path, (str, Path)):
            raise FzError(f"save: got {type(path).__name__}, expected a path, as 'red.mp4'.")
        path = expanded(path, "save")
        if path.suffix and path.suffix.lower() not in WRITERS:
            raise FzError(
                f"save: got {path.name!r}, expected .mp4, .gif, or a name without an ending for a folder of PNGs."
            )
        check_apart(path, {"clip": self.settings.clip.path, "mask": self.settings.edits[0].mask})
        if path.suffix:
            WRITERS[path.suffix.lower()](path, self.uint8(), self.fps)
        else:
            write_pngs(path, self.uint8())
        return path

    def __repr__(self) -> str:
        frames, _, height, width = self.frames.shape
        return f"<Edited {self.target!r}: {frames} frames of {height}x{width}>"

    def _repr_html_(self) -> str:
        return animation(self.uint8(), self.fps, self.target)


def check_apart(path: Path, given: Mapping[str, str | None]) -> None:
    """Raises FzError where writing to this path would take one of the files away that an edit was made of."""
    place = Path(os.path.realpath(path))
    for what, name in ((what, str(expanded(name, what))) for what, name in given.items() if name):
        sources = [Path(os.path.realpath(source)) for source in ([name] if os.path.exists(name) else glob.glob(name))]
        if any(place == source or place in source.parents for source in sources):
            raise FzError(f"save: {path} is the {what} that was read, or holds it. Choose another name.")


@dataclass(eq=False)
class Result:
    """All of a run. Empty but for settings and notes after a dry run."""

    settings: Settings
    notes: list[str]
    out: str | None = None
    video: Video | None = None
    source: Source | None = None
    schedule: Schedule | None = None
    edits: list[Edited] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
