"""What the model sees of a clip: which frames, which part of the picture, at what size.

Choice, crop and resizing follow the released code's ImageSequenceDataset for a square size: to [-1, 1], cut the
offsets, short side to N (antialiased bilinear), centre crop. Sizes that are not square are this project's own. How
files are decoded is `fz.clips.decode`'s question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from fz.clips.decode import open_source
from fz.errors import FzError
from fz.settings.config import ClipSettings, Crop, Size

LARGEST = 8192


@dataclass(frozen=True)
class Video:
    """frames (F, 3, H, W) float32 in [-1, 1]; fps after `every`; indices: the source's frame numbers; notes: what the
    user should know.
    """

    frames: torch.Tensor
    fps: float
    indices: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        from fz.clips.media import to_uint8
        from fz.clips.notebook import animation

        frames = to_uint8(self.frames)
        return animation(frames, self.fps, f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}")


def read_clip(clip: ClipSettings, multiple: int = 64) -> Video:
    """Decode, crop and resize a clip. H and W are rounded to `multiple` (see round_size).

    A video's rate is divided by `every`; images count as 8 frames a second. At a variable rate, start and every count
    positions of a constant timeline (fz.clips.decode.Movie), so indices may repeat. Only the frames needed are decoded,
    one at a time is held at full size. Raises FzError for a path, choice, crop or size that cannot be.
    """
    size, note = round_size(clip.size, multiple)
    _check(clip)
    source = open_source(clip.path)
    frames = clip.frames
    notes = [note] if note else []
    if source.still and frames is not None and frames > 1:
        notes.append(f"{source.name} is one image: a clip of 1 frame, not {frames}")
        frames = 1
    indices = [source.order[k] for k in choose(source.count, frames, clip.start, clip.every, source.name)]
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    height, width = (size, size) if isinstance(size, int) else size
    out = torch.empty(len(indices), 3, height, width)
    shape = None
    for index, picture in source.read(sorted(places)):
        part = cut(picture, clip.crop)
        if shape is None:
            shape = picture.shape
            scale = max(height / part.shape[0], width / part.shape[1])
            if scale > 1.5:
                notes.append(
                    f"{source.name} is {_wide(part.shape)} (width x height), enlarged {scale:.3g} times to cover "
                    f"{width}x{height}"
                )
        elif shape != picture.shape:
            sizes = f"{_wide(shape)} to {_wide(picture.shape)}"
            raise FzError(f"video: {source.name} changes size at frame {index}, {sizes}; convert it to one size")
        out[places[index]] = fit(to_float(part), (height, width))
    return Video(out, source.fps / clip.every if source.rated else source.fps, tuple(indices), (*source.notes, *notes))


def choose(count: int, frames: int | None, start: int, every: int, name: str = "the clip") -> range:
    """Frame numbers start, start + every, ... below count: `frames` of them, or all there are for None. FzError with
    what would fit.
    """
    if start >= count:
        raise FzError(f"start: got {start}, but {name} has {_frames(count)}: expected 0 to {count - 1}")
    there = (count - start - 1) // every + 1
    if frames is None:
        return range(start, count, every)
    if frames > there:
        fits = [f"--frames {there}"]
        if frames > 1 and (count - start - 1) // (frames - 1) >= 1:
            fits.append(f"--every {(count - start - 1) // (frames - 1)}")
        elif start and (frames - 1) * every < count:
            fits.append(f"--start {count - 1 - (frames - 1) * every}")
        asked = _frames(frames) + (f" from frame {start}" if start else "") + (f", every {every}" if every > 1 else "")
        need = start + (frames - 1) * every + 1
        raise FzError(
            f"frames: {name} has {_frames(count)}, too few for {asked} (needs {need}). Use {' or '.join(fits)}"
        )
    return range(start, start + (frames - 1) * every + 1, every)


def round_size(size: Size, multiple: int = 64) -> tuple[Size, str | None]:
    """(size rounded to the nearest multiple a side, at least one; what to tell the user, or None). FzError for no size
    at all.
    """
    sides = (
        (size,)
        if isinstance(size, int)
        else tuple(size)
        if isinstance(size, Sequence) and not isinstance(size, str)
        else ()
    )
    if len(sides) not in (1, 2) or any(isinstance(n, bool) or not isinstance(n, int) for n in sides):
        raise FzError(f"size: got {size!r}, expected a number (a square) or height and width, such as 512 or 384x640")
    text = "x".join(map(str, sides))
    if min(sides) < 1:
        raise FzError(f"size: got {text}, expected sides of at least {multiple}")
    if min(sides) * 2 < multiple:
        raise FzError(f"size: {text} is too small for the model, expected sides of at least {multiple}")
    if max(sides) > LARGEST:
        raise FzError(f"size: {text} is too large, expected sides of at most {LARGEST}")
    rounded = tuple((n + multiple // 2) // multiple * multiple for n in sides)
    note = (
        None
        if rounded == sides
        else f"size {text} is rounded to {'x'.join(map(str, rounded))}: the model needs multiples of {multiple}"
    )
    return (rounded[0] if isinstance(size, int) else rounded), note


def to_float(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float().div(255) * 2 - 1


def cut(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """picture (H, W, 3) without the crop's borders. FzError if nothing is left."""
    height, width = picture.shape[:2]
    if crop.left + crop.right >= width or crop.top + crop.bottom >= height:
        raise FzError(
            f"crop: left {crop.left} + right {crop.right} and top {crop.top} + bottom {crop.bottom} leave nothing "
            "of a picture of "
            f"{width}x{height} (width x height)"
        )
    return picture[crop.top : height - crop.bottom, crop.left : width - crop.right]


def fit(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """image (3, h, w) -> (3, H, W): scaled to cover, keeping its aspect ratio (antialiased bilinear), then centre crop.

    For H = W this is the released short side scaling and centre crop, number for number: the side that fits tightly
    becomes exact, the other is rounded down.
    """
    h, w = image.shape[-2:]
    height, width = size
    if height * w >= width * h:
        scaled = height, max(width, int(height / h * w))
    else:
        scaled = max(height, int(width / w * h)), width
    if scaled != (h, w):
        image = interpolate(image[None], size=scaled, mode="bilinear", antialias=True)[0]
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return image[:, top : top + height, left : left + width]


def _check(clip: ClipSettings):
    lowest = {"start": 0, "every": 1, "frames": 1}
    for name, low in lowest.items():
        value = getattr(clip, name)
        if value is None and name == "frames":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            more = " (or None for all)" if name == "frames" else ""
            raise FzError(f"{name}: got {value!r}, expected a whole number of at least {low}{more}")
    for side in ("left", "right", "top", "bottom"):
        value = getattr(clip.crop, side)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise FzError(f"crop: {side} is {value!r}, expected a whole number of pixels, 0 or more")


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"


def _wide(shape) -> str:
    return f"{shape[1]}x{shape[0]}"
