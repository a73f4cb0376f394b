"""How files become pictures: a path or glob to a source of frames, either images (`fz.clips.images`, Pillow) or a video
file (`fz.clips.movie`, PyAV).

A source knows its number of frames, its rate and its timeline before pictures are decoded; it then decodes only what is
asked for, one picture at a time. Pictures come out upright, (H, W, 3) uint8, transparency on white or as the `flatten`
given has it. Which frames a clip takes, and at what size, is `fz.clips.video`'s question."""

import glob
import os
import re
from pathlib import Path

from fz.clips.animation import Animation, frames_in
from fz.clips.files import IMAGES, KINDS, check_regular, denied, missing
from fz.clips.images import Flatten, Images, images_in, in_order, on_white, opened_image
from fz.clips.movie import Movie
from fz.clips.stream import opened
from fz.errors import FzError
from fz.settings.place import expanded

Frames = Images | Movie | Animation


def check_source(path: str) -> None:
    """Raises FzError for a path or glob at which nothing can be read, by names and headers alone, without torch."""
    place = expanded(path, "video")
    if place.exists() and not place.is_dir() and place.suffix.lower() not in IMAGES:
        with opened(place):
            return
    source = open_source(path)
    if isinstance(source, Images):
        with opened_image(source.paths[0]) as image:
            image.load()


def open_source(path: str, flatten: Flatten = on_white) -> Frames:
    """The source for a path or glob. Raises FzError where there is nothing to read."""
    if not str(path).strip():
        raise FzError(f"video: got an empty path, expected {KINDS}")
    place = expanded(path, "video")
    try:
        if place.is_dir():
            return Images(images_in(place), str(path), flatten)
        if place.exists():
            return of_file(place, flatten)
    except PermissionError as error:
        raise denied(path) from error
    if re.search(r"[*?\[]", str(place)):
        found = [Path(name) for name in glob.glob(str(place)) if os.path.isfile(name)]
        if len(found) == 1:
            return of_file(found[0], flatten)
        if any(p.suffix.lower() in IMAGES for p in found):
            return Images(in_order(found), str(path), flatten)
        got = f"matches {len(found)} files, none of them an image" if found else "matches no file"
        raise FzError(
            f"video: {path} {got}. Expected images (png, jpg, webp, avif, bmp) or one video; put the glob in quotes"
        )
    raise FzError(missing(str(path), place))


def of_file(path: Path, flatten: Flatten) -> Frames:
    """Raises FzError for a file that cannot be read."""
    check_regular(path)
    if path.suffix.lower() not in IMAGES:
        return Movie(path, flatten)
    return Animation(path, flatten) if frames_in(path) > 1 else Images([path], path.name, flatten)
