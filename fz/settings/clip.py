"""Which frames of which clip, and which part of its pictures at what size, does a run take?"""

from dataclasses import dataclass

from fz.settings.checks import make_plain

Size = int | tuple[int, int] | str  # 'original': the source's own


@dataclass(frozen=True)
class Crop:
    """Pixels cut from each side of the upright source picture before it is resized (the released configs' `offset`)."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def __post_init__(self):
        make_plain(self)


@dataclass(frozen=True)
class ClipSettings:
    """Frames start, start + every, ... of a video file, gif, folder or glob of images, or single image.

    frames: how many; None = all. size: N (short side to N, centre crop to N x N) or (H, W) (scaled to cover, keeping
    its aspect ratio, then centre crop), or 'original'.
    """

    path: str
    frames: int | None = 8
    start: int = 0
    every: int = 1
    size: Size = 512
    crop: Crop = Crop()
    fps: float | None = None  # of the results; None: the source's, after `every`
    audio: bool = True  # the source's, kept beside results while time is the source's

    def __post_init__(self):
        make_plain(self)
