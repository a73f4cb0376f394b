"""A user's mask from files (`--mask`): which pictures of it belong to which frames, cropped and resized as the clip
was.
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from fz.clips.decode import open_source
from fz.clips.video import Video, read_clip
from fz.errors import FzError
from fz.settings.config import ClipSettings


def read_mask(path: str, clip: ClipSettings, video: Video) -> Tensor:
    """A user's mask, white = edited, cropped and resized as the clip was: (F, H, W), 1 where edited and 0 elsewhere.

    path: an image, for all frames; or a video or a folder with a mask for each picture of the clip (read with its start
    and every) or for each frame taken. Raises FzError, in one line, for a file that is none, another count or size, and
    for a mask that is black.
    """
    frames, size = len(video.frames), tuple(video.frames.shape[-2:])
    try:
        masks, pictures = open_source(path), open_source(clip.path)
        if masks.count == 1:
            choice = {"frames": 1, "start": 0, "every": 1}
        elif masks.count == pictures.count:
            choice = {"frames": frames}
        elif masks.count == frames:
            choice = {"frames": frames, "start": 0, "every": 1}
        else:
            expected = " or ".join(map(str, sorted({1, frames, pictures.count})))
            one = "one for all, for each frame taken or for each of the clip's"
            raise FzError(f"video: {path} holds {masks.count} pictures, expected {expected}: {one}")
        (_, mask), (_, picture) = next(iter(masks.read([0]))), next(iter(pictures.read([video.indices[0]])))
        if mask.shape != picture.shape:
            sizes = f"{mask.shape[1]}x{mask.shape[0]}, the clip {picture.shape[1]}x{picture.shape[0]}"
            raise FzError(
                f"video: {path} is {sizes} (width x height). Expected the clip's size, before crop and resizing"
            )
        read = read_clip(dataclasses.replace(clip, path=path, size=size, **choice), multiple=1)
    except FzError as error:
        raise FzError(f"mask: {str(error).removeprefix('video: ')}") from error
    white = read.frames.mean(1) > 0
    if not white.any():
        raise FzError(
            f"mask: nothing in {Path(path).name} is white where the clip is looked at. Expected white where it is "
            "to be edited."
        )
    return white.float().expand(frames, -1, -1).contiguous()
