"""A user's mask from files (`--mask`): which pictures of it belong to which frames, cropped and resized as the clip
was.

White is edited. A picture whose background is transparent is a mask by its transparency: what is opaque is edited,
whatever its colours are."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fz.clips.decode import Flatten, Frames, on_white, open_source
from fz.clips.video import Video, plan_clip
from fz.errors import FzError
from fz.settings.config import ClipSettings

if TYPE_CHECKING:
    from torch import Tensor


def read_mask(path: str, clip: ClipSettings, video: Video) -> "Tensor":
    """A user's mask, white or opaque = edited, cropped and resized as the clip was: (F, H, W), 1 where edited, else 0.

    path: an image, for all frames; or a video or a folder with a mask for each picture of the clip (read with its start
    and every) or for each frame taken. Raises FzError, in one line, for a file that is none, another count or size, for
    a mask that is black, and for one whose colours and transparency say different things. Beside a clip of no file, an
    array's or a tensor's, masks are as large as its pictures, for all frames or for each.
    """
    frames, size = len(video.frames), tuple(video.frames.shape[-2:])
    try:
        opacity = Opacity()
        if video.clip is None:
            masks, choice = _opened_beside(path, video, opacity)
        else:
            masks, choice = _opened(path, clip, video.indices, opacity)
        settings = dataclasses.replace(clip, path=path, size=size, **choice)
        for _ in masks.read(sorted(set(plan_clip(settings, multiple=1).indices))):
            pass
        shown = as_grey if opacity.means(Path(path).name) else on_white
        read = plan_clip(settings, multiple=1, flatten=shown).read()
    except FzError as error:
        raise FzError(f"mask: {str(error).removeprefix('video: ')}") from error
    white = read.frames.mean(1) > 0
    if not white.any():
        raise FzError(
            f"mask: nothing in {Path(path).name} is {'opaque' if shown is as_grey else 'white'} where the clip is "
            "looked at. Expected white where it is to be edited."
        )
    return white.float().expand(frames, -1, -1).contiguous()


def check_mask(path: str, clip: ClipSettings, indices: Sequence[int]) -> None:
    """Raises FzError for a mask that cannot be read, or does not fit the clip's frames of these numbers, by its first
    picture; without torch.
    """
    try:
        _opened(path, clip, indices, on_white)
    except FzError as error:
        raise FzError(f"mask: {str(error).removeprefix('video: ')}") from error


def _opened(path: str, clip: ClipSettings, indices: Sequence[int], flatten: Flatten) -> tuple[Frames, dict[str, int]]:
    """The mask's pictures, and which of them to read, as settings of a clip."""
    masks, pictures = open_source(path, flatten), open_source(clip.path)
    choice = choice_beside(path, masks, pictures, len(indices))
    (_, mask), (_, picture) = next(iter(masks.read([0]))), next(iter(pictures.read([indices[0]])))
    if mask.shape != picture.shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the clip {picture.shape[1]}x{picture.shape[0]}"
        raise FzError(f"video: {path} is {sizes} (width x height). Expected the clip's size, before crop and resizing")
    return masks, choice


def _opened_beside(path: str, video: Video, flatten: Flatten) -> tuple[Frames, dict[str, int]]:
    """The same, of a mask beside frames that no reading of a file gives."""
    masks, frames, size = open_source(path, flatten), len(video.frames), tuple(video.frames.shape[-2:])
    if masks.count not in (1, frames):
        expected = f"expected {'1' if frames == 1 else f'1 or {frames}'}: one for all or for each frame of the clip"
        raise FzError(f"video: {path} holds {masks.count} pictures, {expected}")
    _, mask = next(iter(masks.read([0])))
    height, width = given = video.picture or size
    if mask.shape[:2] not in (given, size):
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the clip's pictures {width}x{height}"
        raise FzError(f"video: {path} is {sizes} (width x height). Expected their size")
    return masks, {"frames": masks.count, "start": 0, "every": 1}


def choice_beside(path: str, masks: Frames, pictures: Frames, frames: int) -> dict[str, int]:
    """Which of the masks, or of other pictures beside the clip's, to read, as settings of a clip. Raises FzError for
    another number of them.
    """
    if masks.count == 1:
        return {"frames": 1, "start": 0, "every": 1}
    if masks.count == pictures.count:
        return {"frames": frames}
    if masks.count == frames:
        return {"frames": frames, "start": 0, "every": 1}
    expected = " or ".join(map(str, sorted({1, frames, pictures.count})))
    one = "one for all, for each frame taken or for each of the clip's"
    raise FzError(f"video: {path} holds {masks.count} pictures, expected {expected}: {one}")


def as_grey(rgba: np.ndarray) -> np.ndarray:
    """The opacity of (H, W, 4) uint8 as a grey picture (H, W, 3)."""
    return np.repeat(rgba[..., 3:], 3, axis=2)


@dataclasses.dataclass
class Opacity:
    """Pixels of pictures with transparency, counted: clear, opaque, and of these dark and bright grey ones."""

    clear: int = 0
    opaque: int = 0
    dark: int = 0
    bright: int = 0

    def __call__(self, rgba: np.ndarray) -> np.ndarray:
        solid = rgba[..., 3] >= 128
        colours = rgba[solid][:, :3].astype(np.int16)
        grey = np.ptp(colours, axis=1) <= 16
        level = colours.mean(axis=1)
        self.clear += int((~solid).sum())
        self.opaque += len(colours)
        self.dark += int((grey & (level <= 64)).sum())
        self.bright += int((grey & (level >= 192)).sum())
        return on_white(rgba)

    def means(self, name: str) -> bool:
        """Whether transparency is what the mask says. Raises FzError where both it and black and white could be."""
        if not self.clear:
            return False
        if not self.opaque:
            raise FzError(f"video: {name} is transparent everywhere. Expected opaque or white where it is to be edited")
        if min(self.dark, self.bright) > 0.01 * self.opaque and self.dark + self.bright > 0.95 * self.opaque:
            raise FzError(
                f"video: {name} is black and white, and transparent elsewhere: either could be the mask. Expected one "
                "of them; save it without transparency"
            )
        return True
