"""Which edits of held-out clips are in the README's gallery, and how are they shown?

Nothing is chosen by its looks: candidates are the held-out stories after those that `fz.mini.evaluate` measures, their
edits are compared with what the world draws for the target, and the middle one by PSNR is shown. The worst shape edit
is shown as a failure. Prompts are the captions, settings the presets'.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fz
from fz import mini, records
from fz.clips.media import contact_sheet, heat, side_by_side, to_uint8, write_gif, write_json, write_png
from fz.editor import Editor
from fz.inverted import InvertedClip
from fz.masks import blend_mask
from fz.metrics.numbers import psnr
from fz.mini.data import as_given
from fz.mini.figures import held_out_story, targets
from fz.mini.world import COLOURS, SCENES, Story, caption, counterfactual
from fz.prompts.plan import weights
from fz.records import NUMBER, Each
from fz.results.result import Edited

FIRST = 1000  # of the held-out stories that are candidates
SHOWN, FPS = 192, 6.0  # side of a picture in the gallery; frames a second
SWEPT = (0.2, 0.5, 0.8)
ENTRY = {"shown": int, "psnr": Each(NUMBER)}  # of gallery.json


@dataclass(frozen=True)
class Entry:
    """One kind of edit. wished(story, i): what the i-th story is to become; settings: of `InvertedClip.edit`."""

    name: str
    wished: Callable[[Story, int], Story]
    settings: dict[str, Any] = field(default_factory=dict)
    frames: int = 8
    two: bool = False
    guidance: float = mini.DEFAULTS["guidance"]

    def settings_for(self, story: Story) -> dict[str, Any]:
        """With the words to remove, if it removes."""
        words = f"{story.things[0].colour} {story.things[0].kind}"
        return {**self.settings, **({"remove": words} if self.name == "removal" else {})}


def other_scene(story: Story, i: int) -> Story:
    others = [scene for scene in SCENES if scene != story.scene]
    return counterfactual(story, scene=str(np.random.default_rng([i, 8]).choice(others)))


def other_colour_of_first(story: Story, i: int) -> Story:
    others = [c for c in COLOURS if c not in {thing.colour for thing in story.things}]
    return counterfactual(story, 0, colour=str(np.random.default_rng([i, 6]).choice(others)))


def emptied(story: Story, i: int) -> Story:
    return dataclasses.replace(story, things=())


ENTRIES = (
    Entry("attribute", lambda story, i: targets(story, i)["attribute"], {"kind": "attribute"}),
    Entry("shape", lambda story, i: targets(story, i)["shape"], {"kind": "shape"}),
    Entry("style", lambda story, i: targets(story, i)["style"], {"kind": "style"}),
    Entry("background", other_scene, {"kind": "attribute"}),
    Entry("removal", emptied),
    Entry("two-objects", other_colour_of_first, {"kind": "attribute"}, two=True, guidance=2.0),
    Entry("one-image", lambda story, i: targets(story, i)["attribute"], {"kind": "attribute"}, frames=1),
)


@dataclass(frozen=True)
class Candidate:
    """One story edited. wished: its target's sentence; score: PSNR to what the world draws of the target, in dB."""

    number: int
    story: Story
    wished: str
    inversion: InvertedClip
    edited: Edited
    score: float


def candidate(editor: Editor, entry: Entry, i: int) -> Candidate:
    story = held_out_story(FIRST + i, two=entry.two)
    wished = entry.wished(story, i)
    frames = as_given(story, entry.frames, mini.SIZE).frames
    inversion = editor.invert(frames, caption(story))
    settings = entry.settings_for(story)
    target = None if "remove" in settings else caption(wished)
    edited = inversion.edit(target, guidance=entry.guidance, **settings)
    score = psnr(edited.uint8(), as_given(wished, entry.frames, mini.SIZE).frames)
    return Candidate(FIRST + i, story, edited.target, inversion, edited, score)


def picture(candidate: Candidate, note: str = "") -> np.ndarray:
    """Source, edit and the mask of the thing's word at threshold 0.3, side by side, (F, H, W, 3) uint8."""
    inversion, thing = candidate.inversion, candidate.story.things[0]
    size = inversion.attention(thing.kind).shape[-2:]
    mask = blend_mask(
        inversion.averaged_maps(), weights(inversion.tokens, [thing.kind]), 0.3, size, inversion.latent_size
    )
    clips = [to_uint8(inversion.video.frames), candidate.edited.uint8(), heat(mask.float(), peak=1.0)]
    labels = [inversion.settings.source, f"{candidate.wished}{note}", f"mask of '{thing.kind}'"]
    return side_by_side([enlarged(clip) for clip in clips], labels)


def enlarged(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)) for f in frames])


def swept(candidate: Candidate) -> np.ndarray:
    """The middle frame of edits of one inversion: from left to right cross-attention, from top to bottom self-attention
    is kept for more of the steps.
    """
    middle = len(candidate.edited.frames) // 2
    rows = [
        np.stack(
            [candidate.inversion.edit(candidate.wished, self_replace=own, cross_replace=cross).uint8()[middle]
             for cross in SWEPT]
        )
        for own in SWEPT
    ]  # fmt: skip
    cross = ", ".join(f"{value:.0%}" for value in SWEPT)
    labels = [f"self-attention kept {own:.0%} of the steps, cross-attention {cross}" for own in SWEPT]
    return contact_sheet([enlarged(row) for row in rows], labels)


def make(editor: Editor, entry: Entry, out: Path, count: int) -> dict[str, Any]:
    """Edit an entry's candidates, write the median one's gif and what else is shown of it. Returns its figures."""
    tried = sorted((candidate(editor, entry, i) for i in range(count)), key=lambda c: c.score)
    middle = tried[count // 2]
    write_gif(out / f"{entry.name}.gif", picture(middle), FPS)
    if entry.name == "shape":
        write_gif(out / "failure.gif", picture(tried[0], " (a failure)"), FPS)
    if entry.name == "attribute":
        write_png(out / "sweep.png", swept(middle))
    return {"shown": middle.number, "psnr": {c.number: round(c.score, 2) for c in tried}}


def make_all(out: Path, names: Sequence[str], count: int) -> None:
    """The entries of these names; gallery.json has each as soon as its pictures are there, and others as they were."""
    editor, file = fz.load(), out / "gallery.json"
    figures = records.read(file, Each(ENTRY)) or {}
    for entry in ENTRIES:
        if entry.name in names:
            figures[entry.name] = make(editor, entry, out, count)
            print(entry.name, figures[entry.name], flush=True)
            write_json(file, {e.name: figures[e.name] for e in ENTRIES if e.name in figures})
