"""The drawn world: the same story gives the same pixels, and masks, flow, counterfactuals and captions say what the
pixels show.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fz.errors import FzError
from fz.mini.world import (
    COLOURS,
    KINDS,
    SCENES,
    STYLES,
    Story,
    Thing,
    caption,
    counterfactual,
    draw,
    draw_frame,
    sample_story,
    vocabulary,
)  # fmt: skip

ONE = Story((Thing("ball", "red", (0.3, 0.6), (0.6, 0.62), 0.4, 0.02, 0.3),), "grass", seed=7, drift=0.04)


def grown(mask: np.ndarray, by: int = 3) -> np.ndarray:
    """The mask and what is next to it, where anti-aliasing and outlines reach."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * by + 1))) > 0


def centre(mask: np.ndarray) -> np.ndarray:
    """(x, y) in pixels."""
    return np.argwhere(mask).mean(0)[::-1]


def digest(seed: int) -> str:
    return hashlib.sha256(draw(sample_story(seed), 2, 48).frames.tobytes()).hexdigest()


# ---- determinism -----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_pixels_in_another_process():
    code = "import hashlib; from fz.mini.world import draw, sample_story\n"
    code += "for seed in range(4): print(hashlib.sha256(draw(sample_story(seed), 2, 48).frames.tobytes()).hexdigest())"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    here = [digest(seed) for seed in range(4)]
    assert said.stdout.split() == here and len(set(here)) == 4


def test_what_was_drawn_before_changes_nothing():
    first = draw_frame(ONE, 0.5, 48)
    for seed in range(70):  # more backdrops than are kept
        draw_frame(sample_story(seed), 0.2, 16)
    assert np.array_equal(draw_frame(ONE, 0.5, 48), first)


def test_a_clip_is_its_frames_from_time_0_to_1():
    clip = draw(ONE, 3, 48)
    for i, t in enumerate((0, 0.5, 1)):
        assert np.array_equal(clip.frames[i], draw_frame(ONE, t, 48))
    assert clip.frames.dtype == np.uint8 and clip.masks.shape == (1, 3, 48, 48) and clip.flow.shape == (2, 48, 48, 2)
    alone = draw(ONE, 1, 48)
    assert alone.masks.shape == (1, 1, 48, 48) and alone.flow.shape == (0, 48, 48, 2)


def test_chance_is_as_it_says():
    stories = [sample_story(seed) for seed in range(600)]
    assert np.mean([s.style != "plain" for s in stories]) == pytest.approx(1 / 3, abs=0.06)
    assert np.mean([len(s.things) == 2 for s in stories]) == pytest.approx(0.2, abs=0.05)
    for names, found in ((SCENES, {s.scene for s in stories}), (STYLES, {s.style for s in stories})):
        assert found == set(names)
    for names, what in ((KINDS, "kind"), (COLOURS, "colour")):
        shares = [np.mean([getattr(s.things[0], what) == name for s in stories]) for name in names]
        assert min(shares) > 0.07 and max(shares) < 0.19
    # told otherwise, all else stays random
    assert all(
        len(sample_story(seed, two=False).things) == 1 and sample_story(seed, style="plain").style == "plain"
        for seed in range(20)
    )
    assert all(len({t.colour for t in s.things}) == len({t.kind for t in s.things}) == len(s.things) for s in stories)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_where_the_thing_is_seen(kind):
    story = dataclasses.replace(ONE, things=(dataclasses.replace(ONE.things[0], kind=kind),))
    clip = draw(story, 2, 64)
    for i, t in enumerate((0.0, 1.0)):
        empty = draw_frame(dataclasses.replace(story, things=()), t, 64).astype(int)
        changed = np.abs(clip.frames[i] - empty).max(-1)
        mask = clip.masks[0, i]
        assert 0.02 < mask.mean() < 0.3
        assert (changed[mask] > 12).mean() > 0.97
        # brighter than the scene: never the shadow
        gained = (clip.frames[i].astype(int) - empty).max(-1) > 40
        assert gained[~grown(mask, 1)].sum() == 0


def test_colour_changes_pixels_of_the_mask_only():
    story = dataclasses.replace(ONE, things=(Thing("star", "red", turn=0.2),))
    before, after = draw(story, 2, 64), draw(counterfactual(story, colour="blue"), 2, 64)
    for i in range(2):
        changed = (before.frames[i] != after.frames[i]).any(-1)
        mask = before.masks[0, i]
        assert changed[mask].all() and not changed[~grown(mask, 2)].any()


def test_what_is_in_front_hides_what_is_behind():
    behind, front = Thing("box", "green", (0.5, 0.6), (0.5, 0.6)), Thing("ball", "red", (0.55, 0.6), (0.55, 0.6), 0.2)
    both, alone = (
        draw(Story((behind, front), "road"), 1, 64).masks[:, 0],
        draw(Story((behind,), "road"), 1, 64).masks[0, 0],
    )
    assert not (both[0] & both[1]).any() and both[1].sum() > 50
    assert np.array_equal(both[0] | (both[1] & alone), alone)


def test_sizes_show_the_same():
    large, small = draw(ONE, 2, 128), draw(ONE, 2, 64)
    shrunk = large.frames.reshape(2, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small.frames).mean() < 4
    assert small.masks.sum() * 4 == pytest.approx(large.masks.sum(), rel=0.05)
    np.testing.assert_allclose(
        large.flow[0][large.masks[0, 0]].mean(0) / 2, small.flow[0][small.masks[0, 0]].mean(0), atol=0.05
    )


# ---- flow ------------------------------------------------------------------------------------------------------------


def test_flow_takes_each_thing_to_where_it_is_next():
    count = 0
    for seed in range(8):
        clip = draw(sample_story(seed, two=False), 5, 96)
        for i in range(4):
            now, later = clip.masks[0, i : i + 2]
            # one that is partly out of the picture has its centre elsewhere
            if not any(mask[side].any() or mask[:, side].any() for mask in (now, later) for side in (0, -1)):
                np.testing.assert_allclose(centre(now) + clip.flow[i][now].mean(0), centre(later), atol=0.3)
                count += 1
    assert count > 20


def test_flow_fetches_the_next_frame_s_pixels():
    clip = draw(ONE, 5, 96)
    y, x = np.mgrid[:96, :96]
    for i in range(4):
        there = np.clip(np.stack([y, x], -1) + clip.flow[i][..., ::-1], 0, 95).round().astype(int)
        fetched = clip.frames[i + 1][there[..., 0], there[..., 1]].astype(int)
        inside = clip.masks[0, i] & ~grown(~clip.masks[0, i], 2)
        far = ~grown(clip.masks[0, i] | clip.masks[0, i + 1], 12)
        for where in (inside, far):
            moved, still = (
                np.abs(frame - clip.frames[i].astype(int))[where].mean() for frame in (fetched, clip.frames[i + 1])
            )
            assert moved < 0.75 * still or moved < 1.5


def test_right_and_down_are_positive():
    story = Story((Thing("car", "red", (0.3, 0.5), (0.7, 0.6), bob=0),), "road", drift=-0.05)
    clip = draw(story, 2, 64)
    mask = clip.masks[0, 0]
    np.testing.assert_allclose(clip.flow[0][mask].mean(0), (0.4 * 64, 0.1 * 64), atol=0.1)
    np.testing.assert_allclose(clip.flow[0][~mask], np.broadcast_to((-0.05 * 64, 0), ((~mask).sum(), 2)), atol=1e-5)


# ---- counterfactuals -------------------------------------------------------------------------------------------------


def test_another_kind_leaves_all_but_the_things_as_it_was():
    before, after = draw(ONE, 2, 64), draw(counterfactual(ONE, kind="fish"), 2, 64)
    for i in range(2):
        either = grown(before.masks[0, i] | after.masks[0, i], 2)
        assert np.array_equal(before.frames[i][~either], after.frames[i][~either])
        assert (before.masks[0, i] != after.masks[0, i]).sum() > 50
    neither = ~(before.masks[0, 0] | after.masks[0, 0])
    assert np.array_equal(before.flow[0][neither], after.flow[0][neither])


@pytest.mark.parametrize("change", [{"colour": "cyan"}, {"scene": "night"}, {"style": "pixel art"}], ids=str)
def test_masks_and_motion_stay(change):
    before, after = draw(ONE, 3, 48), draw(counterfactual(ONE, **change), 3, 48)
    assert np.array_equal(before.masks, after.masks) and np.array_equal(before.flow, after.flow)
    assert not np.array_equal(before.frames, after.frames)


def test_only_the_named_thing_changes():
    story = sample_story(0, two=True)
    other = counterfactual(story, 1, colour="pink" if story.things[1].colour != "pink" else "red")
    assert (
        other.things[0] == story.things[0]
        and dataclasses.replace(other.things[1], colour=story.things[1].colour) == story.things[1]
    )
    assert dataclasses.replace(other, things=story.things) == story
    changed = (draw_frame(story, 0, 64) != draw_frame(other, 0, 64)).any(-1)
    if story.style == "plain":
        assert not changed[~grown(draw(story, 1, 64).masks[1, 0], 2)].any()
    assert counterfactual(story) == story


@pytest.mark.parametrize("scene", SCENES)
def test_styles_differ_and_scenes_keep_theirs(scene):
    pictures = [draw_frame(dataclasses.replace(ONE, scene=scene, style=style), 0, 48).astype(int) for style in STYLES]
    for i, a in enumerate(pictures):
        assert a.std() > 8  # not blank
        for b in pictures[:i]:
            assert np.abs(a - b).mean() > 3


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "things, scene, style, said",
    [
        ((Thing("car", "red"),), "sand", "plain", "a red car moving on the sand"),
        ((Thing("star", "orange"),), "night", "plain", "an orange star moving in the night"),
        (
            (Thing("car", "red"), Thing("ball", "blue")),
            "grass",
            "plain",
            "a red car and a blue ball moving on the grass",
        ),
        ((Thing("fish", "pink"),), "water", "watercolor", "watercolor painting of a pink fish moving on the water"),
        ((Thing("box", "green"),), "snow", "pencil sketch", "pencil sketch of a green box moving on the snow"),
        ((Thing("boat", "cyan"),), "road", "pixel art", "pixel art of a cyan boat moving on the road"),
        ((), "sand", "plain", "on the sand"),
        ((), "night", "watercolor", "watercolor painting in the night"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_captions(things, scene, style, said):
    story = Story(things, scene, style)
    assert caption(story) == said
    assert set(said.split()) <= set(vocabulary())


def test_an_empty_scene_is_drawn_without_masks():
    clip = draw(Story((), "snow", drift=0.05), 2, 48)
    assert clip.frames.shape == (2, 48, 48, 3)
    assert clip.masks.size == 0 and np.allclose(clip.flow[0], (0.05 * 48, 0))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Story((Thing("cart", "red"),), "sand"), "Did you mean 'car'"),
        (lambda: Story((Thing("car", "reed"),), "sand"), "colour: got 'reed'"),
        (lambda: Story((Thing("car", "red"),), "sands"), "scene: got 'sands'"),
        (lambda: counterfactual(ONE, style="oil"), "style: got 'oil'"),
    ],
    ids=["kind", "colour", "scene", "style"],
)
def test_what_the_world_does_not_know(make, said):
    with pytest.raises(FzError, match=said):
        make()
