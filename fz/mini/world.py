"""The world that the miniature knows: stories of one or two things moving over a scene, drawn, captioned, and with
their truth.

A `Story` decides everything; the same story gives the same pixels. `counterfactual` changes a thing, a colour, the
scene or the style and nothing else: motion, texture and light stay. How all looks is in `things.py`, `scenes.py`,
`styles.py`.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from fz.errors import FzError, suggest
from fz.mini import scenes, styles, things

KINDS = tuple(things.KINDS)
COLOURS = tuple(things.COLOURS)
SCENES = tuple(scenes.SCENES)
STYLES = ("plain", *styles.STYLES)
VERB = "moving"


@dataclass(frozen=True)
class Thing:
    """One moving thing. Positions and size are shares of the picture's side; angles in radians.

    start, end: (x, y) of its centre at time 0 and 1; size: its height; bob: how far it goes up and down; turn: how far
    it rotates.
    """

    kind: str
    colour: str
    start: tuple[float, float] = (0.3, 0.6)
    end: tuple[float, float] = (0.7, 0.6)
    size: float = 0.36
    bob: float = 0.02
    turn: float = 0.0

    def pose(self, t: float) -> tuple[float, float, float, bool]:
        """x, y, angle and whether it faces left, at time t in [0, 1]."""
        x, y = (a + (b - a) * t for a, b in zip(self.start, self.end, strict=True))
        return x, y + self.bob * math.sin(2 * math.pi * t), self.turn * (t - 0.5), self.end[0] < self.start[0]


@dataclass(frozen=True)
class Story:
    """One clip. seed: of the scene's texture and light; drift: how far the scene moves sideways, a share of the
    side.
    """

    things: tuple[Thing, ...]
    scene: str
    style: str = "plain"
    seed: int = 0
    drift: float = 0.0

    def __post_init__(self):
        known("scene", self.scene, SCENES)
        known("style", self.style, STYLES)
        for thing in self.things:
            known("kind", thing.kind, KINDS)
            known("colour", thing.colour, COLOURS)


@dataclass(frozen=True)
class Drawn:
    """frames (F, H, W, 3) uint8; masks (things, F, H, W) bool, what is seen of each; flow (F - 1, H, W, 2) float32,
    pixels right, down.
    """

    frames: np.ndarray
    masks: np.ndarray
    flow: np.ndarray


def known(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FzError(f"{what}: got {value!r}, expected one of {', '.join(choices)}.{suggest(value, choices)}")


def sample_story(seed: int, style: str | None = None, two: bool | None = None) -> Story:
    """A story at random, the same for the same seed. A third is in a style other than plain, a fifth has two things,
    unless told.
    """
    rng = np.random.default_rng(seed)
    scene = SCENES[rng.integers(len(SCENES))]
    chosen = STYLES[1 + rng.integers(len(STYLES) - 1)] if rng.random() < 1 / 3 else "plain"
    several = bool(rng.random() < 0.2)
    texture, drift = int(rng.integers(2**31)), float(rng.uniform(-0.05, 0.05))
    count = 2 if (several if two is None else two) else 1
    colours = rng.permutation(len(COLOURS))[:count]
    kinds = rng.permutation(len(KINDS))[:count]
    party = []
    for i in range(count):
        size = rng.uniform(0.34, 0.46) if count == 1 else rng.uniform(0.28, 0.34)
        # two things keep to their half of the picture
        low, high = (0.27, 0.73) if count == 1 else ((0.2, 0.34), (0.66, 0.8))[i]
        start, end = rng.uniform(low, high), rng.uniform(low, high)
        y = rng.uniform(0.5, 0.68)
        end_y, bob, turn = y + rng.uniform(-0.05, 0.05), rng.uniform(0, 0.03), rng.uniform(-0.3, 0.3)
        place = (float(start), float(y)), (float(end), float(end_y))
        party.append(Thing(KINDS[kinds[i]], COLOURS[colours[i]], *place, float(size), float(bob), float(turn)))
    return Story(tuple(party), scene, style or chosen, texture, drift)


def caption(story: Story) -> str:
    """The sentence: 'watercolor painting of a red car and a blue ball moving on the sand'; of an empty scene 'on the
    sand'.
    """
    if not story.things:
        style = [] if story.style == "plain" else [styles.STYLES[story.style].caption]
        return " ".join([*style, scenes.SCENES[story.scene].where])
    subject = " and ".join(f"{article(thing.colour)} {thing.colour} {thing.kind}" for thing in story.things)
    prefix = "" if story.style == "plain" else f"{styles.STYLES[story.style].caption} of "
    return f"{prefix}{subject} {VERB} {scenes.SCENES[story.scene].where}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def vocabulary() -> list[str]:
    """Every word that a caption can have, sorted."""
    words = {"a", "an", "and", "of", VERB, *KINDS, *COLOURS}
    for phrase in [s.where for s in scenes.SCENES.values()] + [s.caption for s in styles.STYLES.values()]:
        words |= set(phrase.split())
    return sorted(words)


def counterfactual(
    story: Story,
    thing: int = 0,
    kind: str | None = None,
    colour: str | None = None,
    scene: str | None = None,
    style: str | None = None,
) -> Story:
    """The same story with something else in it: nothing that is not named changes."""
    party = list(story.things)
    party[thing] = dataclasses.replace(
        party[thing], kind=kind or party[thing].kind, colour=colour or party[thing].colour
    )
    return dataclasses.replace(story, things=tuple(party), scene=scene or story.scene, style=style or story.style)


def draw_frame(story: Story, t: float, size: int = 128) -> np.ndarray:
    """The picture at time t in [0, 1], (size, size, 3) uint8."""
    return render(story, t, size)[0]


def render(story: Story, t: float, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture and each thing's seen mask (size, size) bool."""
    picture, masks = add_things(scenes.draw(story.scene, story.seed, story.drift * (t - 0.5), size), story, t)
    return styles.apply(picture, story.style, story.seed), masks


def add_things(picture: np.ndarray, story: Story, t: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The scene with the story's things on it, and each one's seen mask."""
    masks: list[np.ndarray] = []
    for thing in story.things:
        picture, alpha = things.paint(picture, thing.kind, thing.colour, thing.size, thing.pose(t))
        masks = [mask & (alpha < 0.5) for mask in masks] + [alpha >= 0.5]
    return picture, masks


def draw(story: Story, frames: int = 8, size: int = 128) -> Drawn:
    """The clip and its truth, `frames` pictures from time 0 to 1."""
    times = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    pictures, masks = zip(*(render(story, float(t), size) for t in times), strict=True)
    # of an empty scene (0, F, H, W)
    masks = np.stack([np.array(m, bool).reshape(len(story.things), size, size) for m in masks], axis=1)
    pairs = enumerate(zip(times, times[1:], strict=False))
    flow = [flow_between(story, a, b, masks[:, i], size) for i, (a, b) in pairs]
    return Drawn(np.stack(pictures), masks, np.stack(flow) if flow else np.zeros((0, size, size, 2), np.float32))


def flow_between(story: Story, t: float, later: float, masks: np.ndarray, size: int) -> np.ndarray:
    """Where each pixel of time t is at the later time, relative to where it is, (size, size, 2) float32."""
    flow = np.zeros((size, size, 2), np.float32)
    flow[..., 0] = story.drift * (later - t) * size
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    for thing, mask in zip(story.things, masks, strict=True):
        (x0, y0, a0, _), (x1, y1, a1, _) = thing.pose(t), thing.pose(later)
        cos, sin = math.cos(a1 - a0), math.sin(a1 - a0)
        dx, dy = x - x0, y - y0
        moved = np.stack([x1 + cos * dx - sin * dy - x, y1 + sin * dx + cos * dy - y], axis=-1) * size
        flow[mask] = moved[mask]
    return flow
