"""What the miniature's judge sees in an edited clip, beside CLIP: does each frame show what its prompt names?

CLIP compares pictures with sentences and each frame with the next; a ruined picture can score 1 in both. The judge says
in how many frames kind, colour, scene and style are right, of prompts that are captions of the miniature's world.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fz.mini.eye import Eye, Seen, halves, look
from fz.mini.scenes import SCENES
from fz.mini.styles import STYLES
from fz.mini.world import COLOURS, KINDS


@dataclass(frozen=True)
class Named:
    """What a prompt names; () and None for what it does not. things: (colour or None, kind), at most two, in order."""

    things: tuple[tuple[str | None, str], ...]
    scene: str | None
    style: str | None


def named(prompt: str) -> Named | None:
    """What a caption of the miniature's world names, with or without its verb or scene; None for any other sentence."""
    style = next((name for name, style in STYLES.items() if prompt.startswith(style.caption)), None)
    scene = next((name for name, scene in SCENES.items() if prompt.endswith(scene.where)), None)
    words = prompt.split()
    kinds = [i for i, word in enumerate(words) if word in KINDS]
    if len(kinds) > 2 or not (kinds or scene):
        return None
    colours = [words[i - 1] if i and words[i - 1] in COLOURS else None for i in kinds]
    things = tuple((colour, words[i]) for colour, i in zip(colours, kinds, strict=True))
    return Named(things, scene, style or ("plain" if things else None))


def judged(eye: Eye, frames: np.ndarray, prompt: str) -> dict[str, float | None]:
    """In which share of frames (F, H, W, 3) uint8 the prompt's kinds, colours, scene and style are seen; None for what
    it does not name, and for prompts of another world.

    The first of two things is looked for in the left half, as stories have it.
    """
    wished, shares = named(prompt), dict.fromkeys(("seen_kind", "seen_colour", "seen_scene", "seen_style"))
    if wished is None:
        return shares
    parts = halves(frames.shape[:3]) if len(wished.things) == 2 else [None] * max(len(wished.things), 1)
    seen = [look(eye, frames, part) for part in parts]

    def share(of: Callable[[Seen], str | None], wanted: list[str | None]) -> float | None:
        """Of frames in which all that is wanted is seen."""
        right = [[of(s) == value for s in part] for part, value in zip(seen, wanted, strict=False) if value is not None]
        return float(np.all(right, axis=0).mean()) if right else None

    return {
        "seen_kind": share(lambda s: s.kind, [kind for _, kind in wished.things]),
        "seen_colour": share(lambda s: s.colour, [colour for colour, _ in wished.things]),
        "seen_scene": share(lambda s: s.scene, [wished.scene]),
        "seen_style": share(lambda s: s.style, [wished.style]),
    }
