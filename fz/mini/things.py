"""The things of the world: outlines as polygons, with details, shaded by light from the upper left. Units: the thing's
height is 1.
"""

import colorsys
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# hue in degrees, saturation, value: hues apart by 25 degrees or more, so that a colour can be measured
COLOURS = {
    "red": (0, 0.85, 0.85),
    "orange": (28, 0.95, 0.95),
    "yellow": (54, 0.9, 0.97),
    "green": (125, 0.75, 0.65),
    "cyan": (182, 0.75, 0.85),
    "blue": (226, 0.8, 0.85),
    "purple": (272, 0.65, 0.75),
    "pink": (325, 0.55, 0.97),
}
FINE = 4  # how many times finer than the picture things are drawn before they are averaged

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Polygon:
    """A polygon (x right, y down, the thing within ±0.5 high) and its paint: 'body', or a grey from 0 to 255, or
    'shade' (darker body).
    """

    points: Points
    paint: str | int = "body"


def ellipse(x: float, y: float, rx: float, ry: float, paint: str | int = "body", n: int = 40) -> Polygon:
    return Polygon(
        [(x + rx * math.cos(2 * math.pi * i / n), y + ry * math.sin(2 * math.pi * i / n)) for i in range(n)], paint
    )


def ball() -> list[Polygon]:
    return [ellipse(0, 0, 0.46, 0.46), Polygon([(-0.45, -0.06), (0.45, -0.06), (0.45, 0.06), (-0.45, 0.06)], 245)]


def box() -> list[Polygon]:
    front = [(-0.42, -0.26), (0.26, -0.26), (0.26, 0.46), (-0.42, 0.46)]
    top = [(-0.42, -0.26), (-0.24, -0.46), (0.44, -0.46), (0.26, -0.26)]
    side = [(0.26, -0.26), (0.44, -0.46), (0.44, 0.26), (0.26, 0.46)]
    strap = [(-0.14, -0.26), (-0.02, -0.26), (-0.02, 0.46), (-0.14, 0.46)]
    return [Polygon(front), Polygon(top, "light"), Polygon(side, "shade"), Polygon(strap, "shade")]


def star() -> list[Polygon]:
    radii = (0.52, 0.22)
    return [
        Polygon(
            [
                (radii[i % 2] * math.sin(math.pi * i / 5), 0.04 - radii[i % 2] * math.cos(math.pi * i / 5))
                for i in range(10)
            ]
        )
    ]


def car() -> list[Polygon]:
    body = [
        (-0.78, 0.24),
        (-0.78, 0.0),
        (-0.5, -0.08),
        (-0.32, -0.34),
        (0.26, -0.34),
        (0.46, -0.06),
        (0.78, 0.02),
        (0.78, 0.24),
    ]
    windows = [Polygon([(-0.36, -0.07), (-0.25, -0.27), (-0.05, -0.27), (-0.05, -0.07)], 215),
               Polygon([(0.02, -0.07), (0.02, -0.27), (0.21, -0.27), (0.34, -0.07)], 215)]  # fmt: skip
    wheels = [ellipse(x, 0.24, r, r, paint) for x in (-0.44, 0.44) for r, paint in ((0.19, 30), (0.08, 170))]
    return [Polygon(body), *windows, *wheels]


def boat() -> list[Polygon]:
    hull = [(-0.66, 0.18), (0.66, 0.18), (0.42, 0.48), (-0.46, 0.48)]
    return [
        Polygon([(-0.04, -0.52), (0.02, -0.52), (0.02, 0.18), (-0.04, 0.18)], 70),
        Polygon(hull),
        Polygon([(0.06, -0.48), (0.06, 0.1), (0.52, 0.1)], "light"),
        Polygon([(-0.08, -0.36), (-0.08, 0.1), (-0.44, 0.1)], 240),
    ]


def fish() -> list[Polygon]:
    tail = Polygon([(-0.34, 0.0), (-0.78, -0.32), (-0.66, 0.0), (-0.78, 0.32)], "shade")
    fin = Polygon([(-0.1, -0.24), (0.1, -0.46), (0.22, -0.22)], "shade")
    eye = [ellipse(0.4, -0.07, 0.075, 0.075, 250), ellipse(0.42, -0.07, 0.035, 0.035, 15)]
    return [tail, fin, ellipse(0.1, 0, 0.52, 0.3), *eye,
            Polygon([(0.02, 0.02), (-0.14, -0.08), (-0.14, 0.14)], "shade")]  # fmt: skip


def heart() -> list[Polygon]:
    points = []
    for i in range(60):
        a = 2 * math.pi * i / 60
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        points.append((x / 33, -y / 33 - 0.05))
    return [Polygon(points)]


def house() -> list[Polygon]:
    walls = [(-0.4, -0.08), (0.4, -0.08), (0.4, 0.48), (-0.4, 0.48)]
    roof = [(-0.54, -0.06), (0, -0.52), (0.54, -0.06)]
    return [Polygon(walls), Polygon(roof, "shade"), Polygon([(-0.1, 0.14), (0.1, 0.14), (0.1, 0.48), (-0.1, 0.48)], 60),
            Polygon([(0.18, 0.06), (0.34, 0.06), (0.34, 0.22), (0.18, 0.22)], 225)]  # fmt: skip


KINDS: dict[str, Callable[[], list[Polygon]]] = {
    "ball": ball, "box": box, "star": star, "car": car, "boat": boat, "fish": fish, "heart": heart, "house": house,
}  # fmt: skip


@functools.cache
def parts(kind: str) -> list[Polygon]:
    return KINDS[kind]()


def rgb(colour: str, light: float = 1.0) -> tuple[int, int, int]:
    """The colour, or a darker (light < 1) or lighter one of the same hue."""
    hue, saturation, value = COLOURS[colour]
    value = min(1.0, value * light)
    saturation = saturation if light <= 1 else saturation * (1 - 0.5 * (light - 1) / 0.25)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / 360, saturation, value))


def paint(
    picture: np.ndarray, kind: str, colour: str, size: float, pose: tuple[float, float, float, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Lay a thing over a float picture (H, H, 3), 0 to 255, with a soft shadow. Returns the picture and the thing's
    alpha (H, H).
    """
    side = len(picture)
    x, y, angle, left = pose
    big = side * FINE
    layer = Image.new("RGBA", (big, big))
    canvas = ImageDraw.Draw(layer)
    cos, sin = math.cos(angle), math.sin(angle)
    tones = {"body": rgb(colour), "shade": rgb(colour, 0.72), "light": rgb(colour, 1.2)}
    outline = rgb(colour, 0.45)
    for part in parts(kind):
        facing = [(-px if left else px, py) for px, py in part.points]
        place = [
            ((x + size * (cos * px - sin * py)) * big, (y + size * (sin * px + cos * py)) * big) for px, py in facing
        ]
        tone = tones[part.paint] if isinstance(part.paint, str) else (part.paint,) * 3
        canvas.polygon(place, fill=(*tone, 255))
        canvas.line([*place, place[0]], fill=(*outline, 255), width=max(FINE * side // 100, 1))
    layer = np.asarray(layer.reduce(FINE), np.float32)
    alpha = layer[..., 3:] / 255
    body = layer[..., :3] / np.maximum(alpha, 1e-3)  # colours were averaged with the empty ground
    # light from the upper left, over the thing's own extent
    v, u = (np.mgrid[:side, :side] + 0.5) / side
    light = 1 - 0.28 * np.clip(((u - x) + (v - y)) / size, -0.7, 0.7)[..., None]
    shadow = 0.3 * np.exp(-(((u - x) / (0.55 * size)) ** 2 + ((v - y - 0.5 * size) / (0.1 * size)) ** 2))[..., None]
    picture = picture * (1 - shadow)
    return picture * (1 - alpha) + np.clip(body * light, 0, 255) * alpha, alpha[..., 0]
