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
from fz.clips.fit import fitted
from fz.clips.video import Video
from fz.errors import FzError
from fz.settings.config import ClipSettings

if TYPE_CHECKING:
    from torch import Tensor


def read_mask(path: str, clip: ClipSettings, video: Video) -> "Tensor":
    """A user's mask, white or opaque = edited, cropped and resized as the clip was: (F, H, W), 1 where edited, else 0.

    path: an image, for all frames; or a video or a folder with a mask for each frame of the clip's file or for each
    frame taken (`beside`). Raises FzError, in one line, for a file that is none, another count or size, for a mask that
    is black, and for one whose colours and transparency say different things. Beside a clip of no file, an array's or a
    tensor's, masks are as large as its pictures, for all frames or for each.
    """
    frames, size = len(video.frames), tuple(video.frames.shape[-2:])
    try:
        opacity = Opacity()
        if video.clip is None:
            masks, chosen = _opened_beside(path, video, opacity)
        else:
            masks, chosen = _opened(path, clip, video.indices, opacity)
        for _ in masks.read(sorted(set(chosen))):
            pass
        shown = as_grey if opacity.means(Path(path).name) else on_white
        pictures, _ = fitted(open_source(path, shown), chosen, clip.crop, size)
    except FzError as error:
        raise FzError(f"mask: {str(error).removeprefix('video: ')}") from error
    white = pictures.mean(1) > 0
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


def _opened(path: str, clip: ClipSettings, indices: Sequence[int], flatten: Flatten) -> tuple[Frames, tuple[int, ...]]:
    """The mask's source, and which of its frames to read."""
    masks, pictures = open_source(path, flatten), open_source(clip.path)
    chosen = beside(path, masks, pictures, clip, indices)
    (_, mask), (_, picture) = next(iter(masks.read([0]))), next(iter(pictures.read([indices[0]])))
    if mask.shape != picture.shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the clip {picture.shape[1]}x{picture.shape[0]}"
        raise FzError(f"video: {path} is {sizes} (width x height). Expected the clip's size, before crop and resizing")
    return masks, chosen


def _opened_beside(path: str, video: Video, flatten: Flatten) -> tuple[Frames, tuple[int, ...]]:
    """The same, of a mask beside frames that no reading of a file gives."""
    masks, frames, size = open_source(path, flatten), len(video.frames), tuple(video.frames.shape[-2:])
    chosen = for_each(masks, frames)
    if chosen is None:
        expected = f"expected {'1' if frames == 1 else f'1 or {frames}'}: one for all or for each frame of the clip"
        raise FzError(f"video: {path} holds {masks.frames} pictures, {expected}")
    _, mask = next(iter(masks.read([0])))
    height, width = given = video.picture or size
    if mask.shape[:2] not in (given, size):
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the clip's pictures {width}x{height}"
        raise FzError(f"video: {path} is {sizes} (width x height). Expected their size")
    return masks, chosen


def beside(path: str, others: Frames, pictures: Frames, clip: ClipSettings, indices: Sequence[int]) -> tuple[int, ...]:
    """The frame numbers of masks, or of other pictures beside the clip's, for the clip's frames of these numbers; of a
    single one, itself for all of them. Raises FzError for another number of them.

    As many as the clip's file has frames belong to these, whatever their times are: a variable rate takes some twice
    and some not at all. As many as its timeline has positions belong to those.
    """
    if others.frames == pictures.frames:
        return tuple(indices)
    if others.count == pictures.count:
        return tuple(others.order[clip.start + k * clip.every] for k in range(len(indices)))
    if (chosen := for_each(others, len(indices))) is not None:
        return chosen
    expected = " or ".join(map(str, sorted({1, len(indices), pictures.frames, pictures.count})))
    one = "one for all, for each frame taken or for each of the clip's"
    raise FzError(f"video: {path} holds {others.frames} pictures, expected {expected}: {one}")


def for_each(others: Frames, count: int) -> tuple[int, ...] | None:
    """The frame numbers of so many pictures, or of one for all; None of another number of them."""
    if others.count == 1:
        return (0,)
    if others.frames == count:
        return tuple(range(count))
    return tuple(others.order) if others.count == count else None


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
