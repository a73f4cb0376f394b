"""The figures of one picture or one clip: what the miniature draws and what the editor does on it, on held-out stories
with their counterfactuals.

Pictures from captions, of one thing and of two; clips in plain style edited in colour, in kind and in style, fused as
the paper says and otherwise (plain, without masks, from reconstruction's attention); a thing removed; one of two things
edited. Truth is what the world draws. Settings are `fz.settings.config.PRESETS`, nothing is chosen by its result.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fz.attention import MAP_STRIDE
from fz.clips.media import to_uint8
from fz.ddim import CLEAN
from fz.masks import blend_mask
from fz.metrics.numbers import psnr
from fz.mini.data import as_given, held_out
from fz.mini.edited import FULL, Bench, code
from fz.mini.eye import halves, hue_name, look, outline_iou, remains, steadiness
from fz.mini.sampled import sample
from fz.mini.world import COLOURS, KINDS, STYLES, Drawn, Story, Thing, caption, counterfactual
from fz.model.vae import decode_clip
from fz.prompts.plan import weights
from fz.settings.applications import REMOVAL, without
from fz.settings.config import PRESETS
from fz.source import Source

# what each kind of edit is done with beside the paper's preset
VARIANTS = {
    "attribute": {"fused": {}, "plain": {"align": "plain"}},
    "shape": {"fused": {}, "plain": {"align": "plain"}},
    "style": {"fused": {}, "plain": {"align": "plain"}},
}
REMOVALS = {"fused": {}, "plain": {"align": "plain"}}
# what the paper's Fig. 3, 4 and 8 leave out, and what an edit may leave out or add beside it
ABLATIONS = {
    "shape": {
        "no self fusion": {"self_replace": 0.0},
        "full self fusion": {"threshold": None},
        "background kept": {"keep_background": True},
    },
    "removal": {"object not hidden": {"remove": None}, "background kept": {"keep_background": True}},
}


@dataclass(frozen=True)
class Figure:
    """One number of one picture or clip; True and False count as 1 and 0."""

    name: str
    value: float


def change(frames: np.ndarray, flow: np.ndarray, seen: np.ndarray) -> float:
    """How much pixels change along their true motion, mean absolute levels: temporal consistency (less is steadier).

    flow (F - 1, H, W, 2) in pixels; seen (F - 1, H, W): where to look.
    """
    count, h, w = frames.shape[:3]
    y, x = np.mgrid[:h, :w]
    grid = np.stack([(x + flow[..., 0]) / (w - 1), (y + flow[..., 1]) / (h - 1)], -1) * 2 - 1
    later = torch.from_numpy(frames[1:].astype(np.float32)).permute(0, 3, 1, 2)
    moved = F.grid_sample(later, torch.from_numpy(grid.astype(np.float32)), padding_mode="border", align_corners=True)
    return float(np.abs(moved.permute(0, 2, 3, 1).numpy() - frames[:-1])[seen].mean())


def targets(story: Story, i: int) -> dict[str, Story]:
    """The counterfactuals of the i-th clip, one of each kind of edit, at random."""
    rng = np.random.default_rng([i, 3])
    thing = story.things[0]
    return {
        "attribute": counterfactual(story, colour=str(rng.choice([c for c in COLOURS if c != thing.colour]))),
        "shape": counterfactual(story, kind=str(rng.choice([k for k in KINDS if k != thing.kind]))),
        "style": counterfactual(story, style=str(rng.choice(STYLES[1:]))),
    }


def held_out_story(i: int, two: bool = False) -> Story:
    """With one thing or two, in plain style."""
    return dataclasses.replace(held_out(i, two=two), style="plain")


@torch.no_grad()
def measure_picture(bench: Bench, i: int) -> Iterator[Figure]:
    """The i-th held-out story: its drawing through the VAE, at the size that the VAE is for, and a picture sampled from
    its caption.
    """
    story, setup = held_out_story(i), bench.setup
    thing, drawn = story.things[0], as_given(story, 1, 128).frames
    yield Figure("vae psnr at 128 px", psnr(to_uint8(decode_clip(bench.checkpoint.vae, code(bench, drawn))), drawn))
    picture = sample(bench.checkpoint, [caption(story)], i, setup.picture_steps, setup.guidance, setup.size)
    seen = look(bench.eye, to_uint8(picture))[0]
    yield Figure("text to image: colour", seen.colour == thing.colour)
    yield Figure("text to image: scene", seen.scene == story.scene)
    yield Figure("text to image: kind", seen.kind == thing.kind)


@torch.no_grad()
def measure_two(bench: Bench, i: int) -> Iterator[Figure]:
    """A picture sampled from the caption of the i-th held-out story of two things, the first of which is to the
    left.
    """
    story, setup = held_out_story(i, two=True), bench.setup
    picture = to_uint8(sample(bench.checkpoint, [caption(story)], i, setup.picture_steps, setup.guidance, setup.size))
    seen = [look(bench.eye, picture, where)[0] for where in halves(picture.shape[:3])]
    colours = [s.colour == thing.colour for s, thing in zip(seen, story.things, strict=True)]
    kinds = [s.kind == thing.kind for s, thing in zip(seen, story.things, strict=True)]
    yield Figure("two things: both colours", all(colours))
    yield Figure("two things: both kinds", all(kinds))
    yield Figure("two things: all right", all(colours + kinds))


@dataclass(frozen=True)
class HeldOutClip:
    """A held-out clip as the editor gets it, its caption, and its inversion."""

    story: Story
    drawn: Drawn
    prompt: str
    source: Source

    @classmethod
    def of(cls, bench: Bench, story: Story) -> "HeldOutClip":
        drawn, prompt = as_given(story, bench.setup.frames, bench.setup.size), caption(story)
        return cls(story, drawn, prompt, bench.invert(code(bench, drawn.frames), prompt))


@torch.no_grad()
def measure_clip(bench: Bench, i: int) -> Iterator[Figure]:
    """The i-th held-out clip through the VAE, reconstructed, and edited in each way, fused and plain."""
    clip = HeldOutClip.of(bench, held_out_story(i))
    drawn, prompt, source = clip.drawn, clip.prompt, clip.source
    yield Figure("vae psnr", psnr(to_uint8(decode_clip(bench.checkpoint.vae, source.latents[CLEAN])), drawn.frames))
    yield Figure("reconstruction, fused: psnr", psnr(bench.edit(source, prompt, prompt, FULL, 1.0), drawn.frames))
    plain = bench.edit(source, prompt, prompt, {"align": "plain"}, 1.0)
    yield Figure("reconstruction, plain: psnr", psnr(plain, drawn.frames))
    yield Figure("blend mask: iou", mask_iou(bench, source, prompt, clip.story.things[0].kind, drawn.masks[0]))
    for name, wished in targets(clip.story, i).items():
        for variant, settings in VARIANTS[name].items():
            out = bench.edit(source, prompt, caption(wished), {**PRESETS[name], **settings})
            yield from judge(bench, f"{name}, {variant}", out, wished, drawn)


@torch.no_grad()
def measure_ablation(bench: Bench, i: int) -> Iterator[Figure]:
    """What the i-th held-out clip's edits lose without a part of the method: shape's masks, inversion's attention, and
    what is done for a removal; and what a shape edit gains where the background is kept.
    """
    clip, wanted_stories = HeldOutClip.of(bench, held_out_story(i)), targets(held_out_story(i), i)
    for variant, settings in ABLATIONS["shape"].items():
        wished = wanted_stories["shape"]
        out = bench.edit(clip.source, clip.prompt, caption(wished), {**PRESETS["shape"], **settings})
        yield from judge(bench, f"shape, {variant}", out, wished, clip.drawn)
    wished = wanted_stories["attribute"]
    other = bench.resample(clip.source, clip.prompt, caption(wished), PRESETS["attribute"])
    out = bench.edit(other, clip.prompt, caption(wished), PRESETS["attribute"])
    yield from judge(bench, "attribute, reconstruction attention", out, wished, clip.drawn)
    yield from removals(bench, clip, ABLATIONS["removal"])


@torch.no_grad()
def measure_removal(bench: Bench, i: int) -> Iterator[Figure]:
    """Removing the thing of the i-th held-out clip. How often the judge says 'no object' of the source and of the true
    empty scene is measured too: 0 and 1 if it never errs.
    """
    clip = HeldOutClip.of(bench, held_out_story(i))
    yield Figure("removal, source: no object", emptied(bench, clip, clip.drawn.frames))
    yield Figure("removal, true empty scene: no object", emptied(bench, clip, empty_scene(bench, clip.story)))
    yield from removals(bench, clip, REMOVALS)


def empty_scene(bench: Bench, story: Story) -> np.ndarray:
    """Its frames without its things."""
    return as_given(dataclasses.replace(story, things=()), bench.setup.frames, bench.setup.size).frames


def emptied(bench: Bench, clip: HeldOutClip, frames: np.ndarray) -> bool:
    """Is the thing gone from most frames?"""
    empty, colour = empty_scene(bench, clip.story), clip.story.things[0].colour
    return bool(np.mean(remains(bench.eye, frames, empty, clip.drawn.masks[0], colour)) < 0.5)


def removals(bench: Bench, clip: HeldOutClip, variants: dict[str, dict]) -> Iterator[Figure]:
    """The clip's thing removed in each of these ways. Truth is its scene drawn without it."""
    thing, truth = clip.story.things[0], empty_scene(bench, clip.story)
    words = f"{thing.colour} {thing.kind}"
    for variant, settings in variants.items():
        target = without(clip.prompt, words)
        out = bench.edit(clip.source, clip.prompt, target, {"remove": words, **REMOVAL, **settings})
        yield Figure(f"removal, {variant}: no object", emptied(bench, clip, out))
        yield Figure(f"removal, {variant}: psnr to the empty scene", psnr(out, truth))
        yield Figure(f"removal, {variant}: background psnr", psnr(out, clip.drawn.frames, ~clip.drawn.masks.any(0)))


@torch.no_grad()
def measure_one_of_two(bench: Bench, i: int) -> Iterator[Figure]:
    """The i-th held-out clip of two things, one of which gets another colour."""
    clip, which = HeldOutClip.of(bench, held_out_story(i, two=True)), i % 2
    things, drawn = clip.story.things, clip.drawn
    ious = [mask_iou(bench, clip.source, clip.prompt, t.kind, m) for t, m in zip(things, drawn.masks, strict=True)]
    yield Figure("blend mask of two: iou", np.mean(ious))
    new = np.random.default_rng([i, 6]).choice([c for c in COLOURS if c not in {thing.colour for thing in things}])
    wished = counterfactual(clip.story, which, colour=str(new))
    for variant, settings in VARIANTS["attribute"].items():
        out = bench.edit(clip.source, clip.prompt, caption(wished), {**PRESETS["attribute"], **settings})
        label, truth = f"one of two, {variant}", as_given(wished, bench.setup.frames, bench.setup.size)
        colours = [right_colour(out, mask, thing) for mask, thing in zip(truth.masks, wished.things, strict=True)]
        seen = [look(bench.eye, out, where) for where in halves(out.shape[:3])]
        kinds = [np.mean([s.kind == t.kind for s in half]) > 0.5 for half, t in zip(seen, things, strict=True)]
        yield Figure(f"{label}: colour", colours[which])
        yield Figure(f"{label}: other's colour", colours[1 - which])
        yield Figure(f"{label}: both kinds", all(kinds))
        yield Figure(f"{label}: background psnr", psnr(out, drawn.frames, ~drawn.masks.any(0)))
        yield Figure(f"{label}: outline iou", outline_iou(outlines(bench, out), outlines(bench, truth.frames)))


def judge(bench: Bench, label: str, out: np.ndarray, wished: Story, source: Drawn) -> Iterator[Figure]:
    """Is it what was wished, where, with which outline, and how near to the counterfactual? An edit is right if most of
    its frames are.

    The colour is that of the wished thing's own area, whatever else the edit did.
    """
    truth = as_given(wished, bench.setup.frames, bench.setup.size)
    seen, thing = look(bench.eye, out), wished.things[0]
    outline = np.stack([s.mask for s in seen])
    yield Figure(f"{label}: colour", right_colour(out, truth.masks[0], thing))
    yield Figure(f"{label}: kind", np.mean([s.kind == thing.kind for s in seen]) > 0.5)
    yield Figure(f"{label}: style", np.mean([s.style == wished.style for s in seen]) > 0.5)
    background = ~(source.masks.any(0) | truth.masks.any(0))
    yield Figure(f"{label}: background psnr", psnr(out, source.frames, background))
    yield Figure(f"{label}: psnr to counterfactual", psnr(out, truth.frames))
    yield Figure(f"{label}: outline iou", outline_iou(outline, outlines(bench, truth.frames)))
    if len(out) > 1:
        yield Figure(f"{label}: outline steadiness", steadiness(outline, thing))
        # a shape edit is to keep the thing's motion, the others all of the picture's
        where = source.masks[0][:-1] if label.startswith("shape") else np.ones_like(source.masks[0][:-1])
        yield Figure(f"{label}: change along motion", change(out, truth.flow, where))


def right_colour(frames: np.ndarray, masks: np.ndarray, thing: Thing) -> bool:
    """Has the thing's area its colour in most frames?"""
    hues = [hue_name(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
    return bool(np.mean([hue == thing.colour for hue in hues]) > 0.5)


def outlines(bench: Bench, frames: np.ndarray) -> np.ndarray:
    """The masks that the judge sees, (F, H, W) bool."""
    return np.stack([seen.mask for seen in look(bench.eye, frames)])


def mask_iou(bench: Bench, source: Source, prompt: str, word: str, mask: np.ndarray) -> float:
    """IoU of the blend masks (tau = 0.3) with the true mask, reduced to the map's grid and 3x3 max-pooled likewise.

    The mean over frames' grid cells and over the steps that a shape edit fuses.
    """
    size = tuple(side // MAP_STRIDE for side in source.latents[CLEAN].shape[-2:])
    true = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[:, None], size)
    true = F.max_pool2d((true >= 0.5).float(), 3, stride=1, padding=1)[:, 0].bool()
    words = weights(bench.checkpoint.text.tokens(prompt), [word])
    ious = []
    for t in bench.schedule.timesteps[: max(1, bench.schedule.steps // 2)]:
        found = blend_mask(source.maps[t], words, 0.3, size, size)
        ious.append(float((found & true).sum() / (found | true).sum()))
    return float(np.mean(ious))


# what each of them asks the editor for
EDIT_SETTINGS = {
    "picture": (),
    "two": (),
    "clip": (PRESETS, VARIANTS, FULL),
    "ablation": (PRESETS, ABLATIONS, REMOVAL),
    "removal": (REMOVAL, REMOVALS),
    "one of two": (PRESETS, VARIANTS),
}
MEASURES = {
    "picture": measure_picture,
    "two": measure_two,
    "clip": measure_clip,
    "ablation": measure_ablation,
    "removal": measure_removal,
    "one of two": measure_one_of_two,
}
