"""How image files become pictures: folders, globs and single images through Pillow.

Only the plugins of FORMATS are asked: Pillow goes by a file's content, and PostScript named .png would be run by
Ghostscript. Pictures come out upright (EXIF), (H, W, 3) uint8, transparency as `flatten` shows it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fz.clips.files import IMAGES, MOVIES, UNREAD, check_pixels, check_regular, denied, short
from fz.errors import FzError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
IMAGE_FPS = 8.0
ANIMATED = ("WEBP", "PNG", "AVIF")
# the tag by which a TIFF's page says what it is, and its bits for a smaller copy of another, or another's transparency
NEW_SUBFILE_TYPE, NO_FRAME = 254, 0b101

Flatten = Callable[[np.ndarray], np.ndarray]  # (H, W, 4) uint8 with straight alpha -> (H, W, 3) uint8


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 with straight alpha -> (H, W, 3) uint8 over white."""
    if rgba[..., 3].min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    out = np.empty(rgba.shape[:2] + (3,), np.uint8)
    alpha = rgba[..., 3].astype(np.float32) / 255
    for c in range(3):
        out[..., c] = (rgba[..., c] * alpha + 255 * (1 - alpha)).round()
    return out


@contextmanager
def opened_image(path: Path | str) -> Iterator[Image.Image]:
    """A Pillow image of one of FORMATS, not decoded yet. Raises FzError for what is none, cannot be decoded within the
    block, or has too many pixels.
    """
    try:
        check_regular(Path(path))
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(Path(path), *image.size)
            yield image
    except (FzError, MemoryError):
        raise
    except PermissionError as error:
        raise denied(path) from error
    # Pillow's decoders answer damaged files with whatever they stumble over
    except Exception as error:
        raise FzError(f"video: {path} is no readable image ({short(error)}). Is it complete?") from error


def in_order(paths: Sequence[Path]) -> list[Path]:
    """By name with numbers as numbers: 2.png before 10.png. Zero-padded names keep plain order."""
    return sorted(
        paths, key=lambda p: ([(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"([0-9]+)", p.name)], p.name)
    )


def images_in(folder: Path) -> list[Path]:
    """The images and other pictures in a folder, in order. Raises FzError where no image is."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not any(name.lower().endswith(IMAGES) for name in names):
        movie = next((name for name in names if name.lower().endswith(MOVIES)), None)
        do = (
            f"It holds {movie}: pass that file"
            if movie
            else f"It holds {len(names)} other files or folders"
            if names
            else "It is empty"
        )
        raise FzError(f"video: no images (png, jpg, webp, avif, bmp) in the folder {folder}. {do}")
    return in_order([folder / name for name in names])


class Images:
    """Image files as a clip: one frame each, in order of their names. Other files among `paths` are left out; where
    they are pictures, that is said.

    frames; count, as many; fps (files have no rate: 8, rated is False); order: timeline position -> frame, here 0, 1,
    2 ...; still: a single image; audio: never; notes.
    """

    rated = audio = False

    def __init__(self, paths: Sequence[Path], name: str, flatten: Flatten = on_white):
        self.name, self.flatten, self.notes = name, flatten, []
        self.paths = [path for path in paths if path.name.lower().endswith(IMAGES)]
        self.frames = self.count = len(self.paths)
        self.fps, self.still = IMAGE_FPS, self.count == 1
        self.order: Sequence[int] = range(self.count)
        others = [path.name for path in paths if path.name.lower().endswith(UNREAD + MOVIES)]
        if others:
            those = "1 file" if len(others) == 1 else f"{len(others)} files"
            more = ", …" if len(others) > 1 else ""
            self.notes.append(
                f"{name}: {those} of other kinds left out ({others[0]}{more}); convert to png to use them"
            )
        plain = sorted(self.paths)
        if plain != self.paths:
            at = next(i for i, (a, b) in enumerate(zip(plain, self.paths, strict=True)) if a != b)
            self.notes.append(
                f"{name}: files are taken in order of their numbers ({self.paths[at].name} before {plain[at].name})"
            )

    def read(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, picture) for each of the ascending frame numbers. All must have one size."""
        first = None
        for index in wanted:
            path = self.paths[index]
            picture, clear = read_picture(path, self.flatten)
            shape = picture.shape[1], picture.shape[0]
            first = first or (path.name, shape)
            if shape != first[1]:
                raise FzError(
                    f"video: the images of {self.name} differ in size: {first[0]} is {first[1][0]}x{first[1][1]}, "
                    f"{path.name} is {shape[0]}x{shape[1]}. Frames of one clip need one size"
                )
            if clear and self.flatten is on_white:
                self._note(f"{self.name}: transparent pixels are shown on white")
            yield index, picture

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_picture(path: Path, flatten: Flatten = on_white) -> tuple[np.ndarray, bool]:
    """An image file as (H, W, 3) uint8, upright, and whether any of it is transparent."""
    with opened_image(path) as image:
        pages = pages_of(image)
        if len(pages) > 1:
            what = f"has {len(pages)} pages," if image.format == "TIFF" else f"is an animation of {len(pages)} frames"
            raise FzError(
                f"video: {path} {what} among images, expected pictures of one frame; pass it alone, or take it out"
            )
        image.seek(pages[0])
        image.load()
        return as_pixels(image, path, flatten)


def pages_of(image: Image.Image) -> list[int]:
    """The numbers of the pictures in an opened image file that are frames of a clip: an animation's, a TIFF's pages.
    One alone where there are no others; phones store a second view or a depth map in jpegs, which is none.
    """
    if image.format == "TIFF":
        pages = [k for k in range(image.n_frames) if not subfile_type(image, k) & NO_FRAME]
        image.seek(0)
        return pages or [0]
    return list(range(getattr(image, "n_frames", 1) if image.format in ANIMATED else 1))


def subfile_type(image: Image.Image, page: int) -> int:
    image.seek(page)
    return int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0))


def as_pixels(image: Image.Image, name: Path | str, flatten: Flatten) -> tuple[np.ndarray, bool]:
    """A loaded image as (H, W, 3) uint8, upright, and whether any of it is transparent. name: for messages."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise FzError(f"video: {name} has floating-point pixels, expected 8 or 16 bits a channel; convert it first")
    if upright.mode.startswith("I"):
        # 16 bit grey; 257 takes 65535 to 255.
        grey = (np.asarray(upright).astype(np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), False
    if "A" in upright.mode or upright.mode == "La" or "transparency" in upright.info:
        rgba = np.array(upright.convert("RGBA"))
        return flatten(rgba), bool((rgba[..., 3] < 255).any())
    return np.array(upright.convert("RGB")), False
