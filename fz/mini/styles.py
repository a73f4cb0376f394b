"""The styles of the world, as filters on the drawn picture: watercolor, pencil sketch, pixel art."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from fz.mini.scenes import smooth_noise


@dataclass(frozen=True)
class Style:
    """caption: what a sentence begins with. filter: (picture (H, H, 3) float 0 to 255, rng) -> the same."""

    caption: str
    filter: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def as_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(picture), 0, 255).astype(np.uint8))


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(as_image(picture).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def watercolor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat washes that end in dark rims, pale, on paper."""
    side = len(picture)
    wash = np.asarray(
        as_image(picture).filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.MedianFilter(5)), np.float32
    )
    rim = np.abs(wash - blurred(wash, side / 64)).max(-1, keepdims=True)
    paper = 1 + 0.07 * smooth_noise(rng, side, side)[..., None]
    pale = 255 - (255 - wash) * 0.72
    return (pale - 1.1 * rim) * paper


def pencil(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey lines where the picture changes, hatching where it is dark, a trace of its colour."""
    side = len(picture)
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    inverse = 255 - grey
    soft = blurred(np.repeat(inverse[..., None], 3, -1), side / 40)[..., 0]
    lines = np.clip(grey * 255 / np.maximum(255 - soft, 1), 0, 255)
    v, u = np.mgrid[:side, :side] / side
    hatch = 0.5 + 0.5 * np.sin(2 * np.pi * 26 * (u + v))
    tone = 0.9 * lines + 0.1 * 255 - 46 * hatch * np.clip(1 - grey / 200, 0, 1) - 30 * np.clip(1 - grey / 110, 0, 1)
    colour = picture - grey[..., None]
    return np.clip(tone, 0, 255)[..., None] + 0.35 * colour


def pixels(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blocks of a thirty-second of the side, eight levels of each colour, strong contrast."""
    side = len(picture)
    small = np.asarray(as_image(picture).resize((32, 32), Image.Resampling.BOX), np.float32)
    levels = np.round((small - 128) * 1.15 / 36) * 36 + 128
    return np.asarray(as_image(levels).resize((side, side), Image.Resampling.NEAREST), np.float32)


STYLES = {
    "watercolor": Style("watercolor painting", watercolor),
    "pencil sketch": Style("pencil sketch", pencil),
    "pixel art": Style("pixel art", pixels),
}


def apply(picture: np.ndarray, style: str, seed: int) -> np.ndarray:
    """The picture in that style ('plain': as it is), (H, H, 3) uint8."""
    if style != "plain":
        picture = STYLES[style].filter(picture, np.random.default_rng([seed, 7]))
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)
