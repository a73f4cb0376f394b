"""The scenes of the world: ground, sky and a texture that stays in its place. Low in contrast, so that things stand
out.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MARGIN = 0.125  # drawn beyond either edge, so that a scene can drift


@dataclass(frozen=True)
class Scene:
    """where: its words in a caption. sky, ground: RGB at the top and at the horizon, at the horizon and at the bottom.

    horizon: how far down, a share of the height. texture: of the ground, ± 1, from noise of several grains; depth: how
    strong, in levels.
    """

    where: str
    sky: tuple[tuple[int, int, int], tuple[int, int, int]]
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]
    horizon: float
    texture: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    depth: float


def speckle(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return noise


def ripples(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * (9 * v + 0.7 * noise + 0.35 * np.sin(9 * u)))


def dunes(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 * noise + 0.7 * np.sin(2 * np.pi * (5 * v + 1.6 * u + 0.5 * noise))


def drifts(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.4 * noise + 0.6 * np.sin(2 * np.pi * (1.5 * v + 1.1 * u + 0.4 * noise))


def lanes(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    dash = (np.abs(v - 0.9) < 0.018) & (np.mod(u, 0.25) < 0.14)
    return 0.3 * noise + 8 * dash


def stars(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return noise


SCENES = {
    "grass": Scene(
        "on the grass", ((150, 200, 240), (205, 230, 245)), ((112, 160, 82), (78, 128, 58)), 0.36, speckle, 13
    ),
    "sand": Scene(
        "on the sand", ((170, 212, 240), (226, 236, 240)), ((232, 206, 158), (212, 178, 124)), 0.34, dunes, 8
    ),
    "water": Scene(
        "on the water", ((176, 200, 226), (224, 230, 236)), ((92, 150, 188), (44, 100, 150)), 0.36, ripples, 11
    ),
    "snow": Scene(
        "on the snow", ((160, 176, 200), (208, 216, 228)), ((246, 248, 252), (222, 230, 242)), 0.38, drifts, 5
    ),
    "road": Scene("on the road", ((186, 190, 200), (222, 222, 222)), ((128, 128, 132), (96, 96, 100)), 0.4, lanes, 10),
    "night": Scene("in the night", ((10, 12, 34), (34, 34, 74)), ((30, 32, 52), (16, 18, 32)), 0.55, stars, 6),
}


@functools.lru_cache(maxsize=64)
def backdrop(scene: str, seed: int, size: int) -> np.ndarray:
    """The scene with its margins, (size, size · (1 + 2 MARGIN), 3) float32."""
    style, rng = SCENES[scene], np.random.default_rng([seed, len(scene), ord(scene[0])])
    width = size + 2 * round(MARGIN * size)
    v, u = np.mgrid[:size, :width].astype(np.float32) / size
    noise = smooth_noise(rng, size, width)
    down = np.clip(v / style.horizon, 0, 1)[..., None]
    below = np.clip((v - style.horizon) / (1 - style.horizon), 0, 1)[..., None]
    sky = np.array(style.sky[0]) * (1 - down) + np.array(style.sky[1]) * down
    ground = np.array(style.ground[0]) * (1 - below) + np.array(style.ground[1]) * below
    ground = ground + (style.depth * (0.35 + 0.65 * below[..., 0]) * style.texture(noise, u, v))[..., None]
    clouds = 5 * noise[..., None]
    if scene == "night":
        for x, y, bright in zip(
            rng.uniform(0, width / size, 26), rng.uniform(0, style.horizon, 26), rng.uniform(90, 190, 26), strict=True
        ):
            clouds = clouds + (bright * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 0.007**2))[..., None]
    edge = np.clip((v - style.horizon) * size + 0.5, 0, 1)[..., None]
    return ((sky + clouds) * (1 - edge) + ground * edge).astype(np.float32)


def smooth_noise(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Noise of three grains, roughly ± 1, the same shape at every size: bilinear from fixed grids."""
    total = np.zeros((h, w), np.float32)
    for cells, weight in ((4, 0.5), (10, 0.4), (26, 0.3)):
        grid = rng.uniform(-1, 1, (cells + 1, 2 * cells + 1)).astype(np.float32)
        y, x = np.linspace(0, cells - 1e-3, h), np.linspace(0, 2 * cells * (w / h) / 2 - 1e-3, w)
        i, j = y.astype(int), x.astype(int)
        fy, fx = (y - i)[:, None], (x - j)[None]
        rows = [
            grid[np.ix_(i + a, j + b)] * ((fy if a else 1 - fy) * (fx if b else 1 - fx)) for a in (0, 1) for b in (0, 1)
        ]
        total += weight * sum(rows)
    return total


def draw(scene: str, seed: int, shift: float, size: int) -> np.ndarray:
    """The scene moved right by a share `shift` of the side, (size, size, 3) float32, 0 to 255; the seed's texture."""
    wide = backdrop(scene, seed, size)
    left = round(MARGIN * size) - shift * size
    i = int(np.floor(left))
    part = left - i
    return wide[:, i : i + size] * (1 - part) + wide[:, i + 1 : i + 1 + size] * part
