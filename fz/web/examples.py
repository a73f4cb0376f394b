"""Which clips does a visitor find there? The bundled one and some of the miniature's world, drawn once into the
server's folder.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fz import mini
from fz.clips.media import write_pngs
from fz.mini.world import Story, Thing, caption, draw
from fz.web.folder import Folder, Visitor, VisitorClip

FRAMES = 8


def moving(kind: str, colour: str, start: float = 0.3, end: float = 0.68, size: float = 0.42) -> Thing:
    return Thing(kind, colour, (start, 0.6), (end, 0.62), size, 0.015, 0.1)


# name -> (story, words of its caption, what stands in their place)
STORIES: dict[str, tuple[Story, str, str]] = {
    "a yellow boat": (Story((moving("boat", "yellow"),), "water", seed=13, drift=-0.02), "yellow", "red"),
    "an orange box": (Story((moving("box", "orange"),), "grass", seed=12, drift=0.02), "box", "house"),
    "a pink house": (Story((moving("house", "pink", 0.4, 0.6),), "grass", seed=14), "grass", "snow"),
    "a blue ball": (Story((moving("ball", "blue"),), "sand", seed=16, drift=0.02), "blue", "green"),
}


class Examples:
    """By id, the same in every visitor's folder."""

    def __init__(self, folder: Folder):
        bundled = mini.example()
        self.clips = [
            self.made("a red car", bundled["clip.path"], bundled["source"], bundled["edits.0.target"]),
        ]
        for name, (story, old, new) in STORIES.items():
            place = folder.examples / name.replace(" ", "-")
            if len(list(place.glob("*.png"))) != FRAMES:
                write_pngs(place, drawn(story))
            source = caption(story)
            self.clips.append(self.made(name, str(place), source, source.replace(old, new)))

    @staticmethod
    def made(name: str, path: str, source: str, target: str) -> VisitorClip:
        of: dict[str, Any] = {"picture": (mini.SIZE, mini.SIZE), "count": FRAMES, "fps": 8.0}
        return VisitorClip(
            hashlib.sha256(name.encode()).hexdigest()[:16], name, path, source=source, target=target, **of
        )

    def listed(self) -> list[tuple[str, Path, VisitorClip]]:
        return [(clip.id, Path(clip.path) / f"{FRAMES // 2:05d}.png", clip) for clip in self.clips]

    def bring(self, visitor: Visitor, clip_id: str) -> VisitorClip | None:
        """The example of that id, from now on one of the visitor's clips; None where it is none."""
        clip = next((clip for clip in self.clips if clip.id == clip_id), None)
        if clip is not None:
            visitor.keep(clip)
        return clip


def drawn(story: Story) -> np.ndarray:
    return draw(story, FRAMES, mini.SIZE).frames
