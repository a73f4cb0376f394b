"""How does a picture of a source become one that the model sees? Cut, scaled to cover the size, cut at its centre, in
[-1, 1].

Cropping and resizing follow the released code's ImageSequenceDataset for a square size; sizes that are not square are
this project's own. torch, which takes seconds to import, is imported when pictures are."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fz.clips.decode import Frames
from fz.clips.files import MAX_PIXELS
from fz.clips.images import Images
from fz.errors import FzError
from fz.settings.config import Crop

if TYPE_CHECKING:
    import torch


def fitted(
    source: Frames, indices: Sequence[int], crop: Crop, size: tuple[int, int], alike: bool = True
) -> "tuple[torch.Tensor, list[tuple[int, int]]]":
    """(frames (F, 3, H, W) in [-1, 1] of these frame numbers, in any order and as often as they come; the different
    sizes (h, w) of the source's pictures, the first one's first). One picture at a time is held at full size.

    alike: whether all need one size, as a clip's frames do; else each is scaled and cut on its own. Raises FzError for
    pictures that cannot be read, cut, or enlarged.
    """
    import torch

    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    out = torch.empty(len(indices), 3, *size)
    shapes: list[tuple[int, int]] = []
    for index, picture in pictures_of(source, sorted(places), alike):
        part, shape = cut(picture, crop), picture.shape[:2]
        if shape not in shapes:
            if shapes and alike:
                sizes = f"{wide(shapes[0])} to {wide(shape)}"
                raise FzError(f"video: {source.name} changes size at frame {index}, {sizes}; convert it to one size")
            shapes.append(shape)
            check_narrow(part.shape[:2], size, source.name)
        # a channel at a time: large pictures in float32 are larger still
        for c in range(3):
            out[places[index], c] = fit(to_float(part[..., c : c + 1]), size)
    return out, shapes


def pictures_of(source: Frames, wanted: Sequence[int], alike: bool) -> Iterator[tuple[int, np.ndarray]]:
    """(index, picture) for each of the ascending frame numbers; image files one by one where they need not be alike."""
    if alike or not isinstance(source, Images):
        return source.read(wanted)
    return chain.from_iterable(source.read([index]) for index in wanted)


def check_narrow(part: Sequence[int], size: tuple[int, int], name: str) -> None:
    """Raises FzError for a part (h, w) of a picture so narrow that covering the size takes too many pixels."""
    scaled = scaled_size(part, size)
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise FzError(
            f"video: {name} is {wide(part)} (width x height), too narrow: it would have to be enlarged to "
            f"{wide(scaled)} to cover {wide(size)}. Crop it first"
        )


def to_float(picture: np.ndarray) -> "torch.Tensor":
    """(H, W, C) uint8 -> (C, H, W) float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(picture).permute(2, 0, 1).float().div_(255).mul_(2).sub_(1)


def cut(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """picture (H, W, 3) without the crop's borders. FzError if nothing is left."""
    height, width = cut_size(picture.shape[:2], crop)
    return picture[crop.top : crop.top + height, crop.left : crop.left + width]


def cut_size(picture: Sequence[int], crop: Crop) -> tuple[int, int]:
    """(h, w) of what a crop leaves of a picture (h, w). FzError if that is nothing."""
    height, width = picture[0] - crop.top - crop.bottom, picture[1] - crop.left - crop.right
    if height < 1 or width < 1:
        raise FzError(
            f"crop: left {crop.left} + right {crop.right} and top {crop.top} + bottom {crop.bottom} leave nothing of a "
            f"picture of {wide(picture)} (width x height)"
        )
    return height, width


def fit(image: "torch.Tensor", size: tuple[int, int]) -> "torch.Tensor":
    """image (C, h, w) -> (C, H, W): scaled to cover, keeping its aspect ratio (antialiased bilinear), then centre crop.

    For H = W this is the released short side scaling and centre crop, number for number: the side that fits tightly
    becomes exact, the other is rounded down.
    """
    from torch.nn.functional import interpolate

    height, width = size
    scaled = scaled_size(image.shape[-2:], size)
    if scaled != tuple(image.shape[-2:]):
        image = interpolate(image[None], size=scaled, mode="bilinear", antialias=True)[0]
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return image[:, top : top + height, left : left + width]


def scaled_size(part: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) to which a part (h, w) of a picture is scaled to cover `size`."""
    (h, w), (height, width) = part, size
    if height * w >= width * h:
        return height, max(width, int(height / h * w))
    return max(height, int(width / w * h)), width


def wide(shape: Sequence[int]) -> str:
    """(h, w, …) as messages have it."""
    return f"{shape[1]}x{shape[0]}"
