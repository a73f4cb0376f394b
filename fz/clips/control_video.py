"""What a ControlNet is shown: the edges of the clip, or another video beside it, cropped and resized as it was."""

from torch import Tensor

from fz.clips.canny import outlines
from fz.clips.decode import open_source
from fz.clips.fit import fitted
from fz.clips.user_mask import beside
from fz.clips.video import Video, plan_clip
from fz.errors import FzError
from fz.settings.config import ClipSettings, Crop

CANNY = "canny"


def check_control_video(path: str | None, clip: ClipSettings) -> None:
    """Raise FzError, before any model is loaded, for a file that cannot be read or has another number of pictures."""
    if path in (None, CANNY):
        return
    try:
        plan = plan_clip(clip, multiple=1)
        beside(path, open_source(path), plan.source, clip, plan.indices)
    except FzError as error:
        raise of_control(error) from error


def read_control_video(path: str | None, canny: tuple[float, float], clip: ClipSettings, video: Video) -> Tensor:
    """(F, 3, H, W) in [-1, 1].

    path: None or 'canny', the edges of the clip's frames between these gradients; else an image for all frames, or a
    video or folder with a picture for each frame of the clip's file or for each frame taken (`beside`): of the clip's
    size, and then cropped and resized as it was, or of its frames' size. Raises FzError, in one line.
    """
    if path in (None, CANNY):
        return outlines(video.frames, *canny)
    frames, size = len(video.frames), tuple(video.frames.shape[-2:])
    try:
        shown, pictures = open_source(path), open_source(clip.path)
        chosen = beside(path, shown, pictures, clip, video.indices)
        (_, one), (_, picture) = next(iter(shown.read([0]))), next(iter(pictures.read([video.indices[0]])))
        crop = clip.crop if one.shape == picture.shape else Crop()
        if one.shape != picture.shape and one.shape[:2] != size:
            got = f"{one.shape[1]}x{one.shape[0]}, the clip {picture.shape[1]}x{picture.shape[0]} (width x height)"
            raise FzError(f"video: {path} is {got}. Expected the clip's size, or {size[1]}x{size[0]}, its frames'")
        read, _ = fitted(shown, chosen, crop, size)
    except FzError as error:
        raise of_control(error) from error
    return read.expand(frames, -1, -1, -1).contiguous()


def of_control(error: FzError) -> FzError:
    return FzError(f"control_video: {str(error).removeprefix('video: ')}")
