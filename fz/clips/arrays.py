"""From what a Python program has of a clip to what the model sees: a file, an array, a tensor, or a list of pictures.

All become a `Video` of the same numbers as `fz.clips.video.read_clip` gives for files with these pixels.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fz.clips.files import FASTEST, SLOWEST, short
from fz.clips.fit import fit, to_float
from fz.clips.images import as_pixels, on_white
from fz.clips.video import LARGEST, Video, read_clip, round_size
from fz.errors import FzError
from fz.settings.checks import check_number, check_whole, plain
from fz.settings.config import ClipSettings, Crop, Size
from fz.settings.spoken import in_python, spoken

ClipLike = Video | np.ndarray | Tensor | Sequence[Image.Image]

EXPECTED = (
    "expected what fz.read gives, a (F, H, W, 3) uint8 array, a (F, 3, H, W) tensor in [-1, 1], or a list of PIL images"
)
FPS = 8.0  # of pictures that say none


@spoken()
def read(
    path: str | Path | None = None,
    frames: int | None = 8,
    size: Size | None = None,
    *,
    start: int = 0,
    every: int = 1,
    crop: Crop | Sequence[int] | None = None,
    multiple: int | None = None,
) -> Video:
    """A clip from a video file, gif, folder or glob of images, or single image; nothing: the miniature's example.

    frames: how many, None for all. size: N (a square cut from the centre) or (height, width); 512, or the miniature's
    128. start, every: the first frame, and each how manieth. crop: pixels cut from left, right, top, bottom first.
    multiple: what sides are rounded to, 64, or the miniature's 32. Raises FzError for what cannot be read.
    """
    if path is not None and not isinstance(path, (str, Path)):
        raise FzError(
            f"read: got {kind_of(path)}, expected a path. Pass arrays and pictures to Editor.invert as they are."
        )
    if not isinstance(crop, Crop):
        if crop is not None and (not isinstance(crop, Sequence) or len(crop) != 4):
            raise FzError(f"crop: got {crop!r}, expected pixels to cut as (left, right, top, bottom).")
        crop = Crop(*(crop or ()))
    if path is None:
        from fz import mini

        path, usual, least = mini.example()["clip.path"], mini.SIZE, 32
    else:
        usual, least = 512, 64
    size, multiple = plain(size), least if multiple is None else plain(multiple)
    size = usual if size is None else tuple(size) if isinstance(size, list) else size
    check_whole("multiple", multiple, 1, LARGEST)
    video = read_clip(ClipSettings(str(path), frames, start, every, size, crop), multiple)
    return dataclasses.replace(video, notes=tuple(map(in_python, video.notes)))


def as_video(clip: ClipLike, multiple: int, fps: float = FPS) -> Video:
    """The clip as the model takes it: float32 in [-1, 1], sides a multiple of `multiple` (scaled to cover, then cut, as
    `fz.clips.fit.fit` does, and noted).

    Raises FzError for anything that is no clip.
    """
    if isinstance(clip, Video):
        clip = checked(clip)
    else:
        frames = to_tensor(clip)
        clip = Video(frames, fps, tuple(range(len(frames))))
    size, note = round_size(tuple(clip.frames.shape[-2:]), multiple)
    if note:
        frames = torch.stack([fit(frame, size) for frame in clip.frames]).clamp(-1, 1)
        # no reading of the files gives these pixels: a mask is one of what was given here
        given = tuple(clip.frames.shape[-2:])
        clip = Video(frames, clip.fps, clip.indices, (*clip.notes, note), picture=given)
    return clip


def checked(clip: Video) -> Video:
    """A Video as anyone may have made it. Raises FzError for frames that are none, or not in [-1, 1]."""
    if not isinstance(clip.frames, Tensor):
        raise FzError(f"clip: got a Video of {kind_of(clip.frames)}, expected a tensor. Pass the frames as they are.")
    frames, fps, indices = in_range(clip.frames), plain(clip.fps), plain(clip.indices)
    check_number("fps", fps, SLOWEST, FASTEST, "8 is usual.")
    if not isinstance(indices, Sequence) or len(indices) != len(frames):
        raise FzError(f"indices: got {indices!r}, expected the numbers of {len(frames)} frames.")
    for index in (indices := tuple(map(plain, indices))):
        check_whole("indices", index, 0, 10**9)
    if not isinstance(clip.notes, tuple) or not all(isinstance(note, str) for note in clip.notes):
        raise FzError(f"notes: got {kind_of(clip.notes)}, expected a tuple of lines, as ().")
    if clip.clip is not None and not isinstance(clip.clip, ClipSettings):
        raise FzError(f"clip: got a Video whose clip is {kind_of(clip.clip)}, expected None. Leave it out.")
    return dataclasses.replace(clip, frames=frames, fps=fps, indices=indices)


def to_tensor(clip: np.ndarray | Tensor | Sequence[Image.Image]) -> Tensor:
    """(F, 3, H, W) float32 in [-1, 1]."""
    if isinstance(clip, np.ndarray):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
            raise FzError(
                f"clip: got {kind_of(clip)}, {EXPECTED}. Of one picture take picture[None]; of values in [0, 1] "
                "(255 * clip).round().astype('uint8')."
            )
        return torch.stack([to_float(np.ascontiguousarray(picture)) for picture in clip])
    if isinstance(clip, Tensor):
        return in_range(clip)
    if isinstance(clip, Sequence) and clip and all(isinstance(picture, Image.Image) for picture in clip):
        return pictures_of(clip)
    hint = " Read files by fz.read." if isinstance(clip, (str, Path)) else ""
    raise FzError(f"clip: got {kind_of(clip)}, {EXPECTED}.{hint}")


def pictures_of(clip: Sequence[Image.Image]) -> Tensor:
    """As files with these pixels are read: upright, transparency on white, 16 bits as 8."""
    pictures = []
    for i, image in enumerate(clip):
        try:
            image.load()
            pictures.append(as_pixels(image, f"picture {i}", on_white)[0])
        except FzError as error:
            raise FzError(f"clip: {str(error).removeprefix('video: ')}") from error
        except MemoryError:
            raise
        # Pillow reads a file when its pixels are asked for, and answers damage with whatever it stumbles over
        except Exception as error:
            raise FzError(f"clip: picture {i} cannot be read ({short(error)}). Is its file complete?") from error
    sizes = sorted({picture.shape[1::-1] for picture in pictures})
    if len(sizes) > 1:
        raise FzError(
            f"clip: got pictures of {len(sizes)} sizes, {sizes[0]} and {sizes[1]}, expected one. Resize them."
        )
    return torch.stack([to_float(picture) for picture in pictures])


def in_range(clip: Tensor) -> Tensor:
    if not clip.is_floating_point() or clip.ndim != 4 or clip.shape[1] != 3 or not clip.numel():
        raise FzError(f"clip: got {kind_of(clip)}, {EXPECTED}.")
    clip = clip.detach().float().cpu()
    low, high = clip.min().item(), clip.max().item()
    if not -1.001 <= low <= high <= 1.001:
        raise FzError(f"clip: got values from {low:g} to {high:g}, expected -1 to 1. Of [0, 1] take 2 * clip - 1.")
    return clip if -1 <= low <= high <= 1 else clip.clamp(-1, 1)


def kind_of(value: object) -> str:
    """For messages: the shape and dtype of an array, the value of what is short, else its type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}, {dtype}"
    return repr(value) if len(repr(value)) <= 60 else type(value).__name__
