"""Removing, enhancing, several edits at once, a user's mask, a background that stays: sentences, plans, masks, and runs
of each flag.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import numbers
from test_edit import FRAMES, SCHEDULE, STEPS, TARGET, Z0, edited, fusion, inverted, model_of, region, unet  # noqa: F401

from fz import mini
from fz.clips.user_mask import read_mask
from fz.clips.video import read_clip
from fz.ddim import CLEAN
from fz.edit import Edit, masks_of
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fuser
from fz.masks import EVERYWHERE, foreground, paste_background, reduced, self_masks, surroundings
from fz.mini.data import as_given
from fz.mini.eye import load_eye, remains
from fz.mini.figures import held_out_story
from fz.mini.world import counterfactual
from fz.model.layers import Site
from fz.prompts.plan import plan_edit
from fz.prompts.text import TextEncoder
from fz.results.folder import as_json
from fz.run import main
from fz.settings.applications import enhanced, target_of, without
from fz.settings.command import command
from fz.settings.config import ClipSettings, Crop, EditSettings, build
from fz.settings.parse import parse
from fz.weights.tokenizer import find_tokenizer, load_tokenizer

needs_miniature = pytest.mark.skipif(not (mini.FOLDER / "unet").is_dir(), reason="weights/mini has no checkpoint yet")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text():
    return TextEncoder(load_tokenizer(find_tokenizer(mini.FOLDER), 2**31), None)


# ---- sentences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words", "target"),
    [
        ("a red car moving on the sand", "red car", "moving on the sand"),
        ("a red car moving on the sand", "Red  CAR", "moving on the sand"),
        ("a red car and a blue ball moving on the sand", "red car", "a blue ball moving on the sand"),
        ("a red car and a blue ball moving on the sand", "blue ball", "a red car moving on the sand"),
        ("a red car and a blue ball moving on the sand", "blue ball, red car", "moving on the sand"),
        ("a man with the hat and an umbrella", "umbrella", "a man with the hat"),
        ("a man, a dog and a cat", "dog", "a man, a cat"),
        ("the car on the road", "car", "on the road"),
        ("red car passes a car", "red car", "passes a car"),
        ("a car passes a car.", "car", "passes"),
        ("a red car and a red ball on the sand", "red", "a car and a ball on the sand"),
        ("a red car on the sand", "red", "a car on the sand"),
        ("a cat and an old dog", "old", "a cat and an dog"),
        ("a cat, and a dog", "cat", "a dog"),
    ],
)
def test_the_target_of_a_removal(source, words, target):
    assert without(source, words) == target


def test_the_sentence_that_a_removal_made_is_said():
    overlay = {"clip.path": "a.mp4", "source": "a red car", "edits.0.remove": "red"}
    assert build(overlay).notes == ("edit 0: the target is 'a car', the source without 'red'",)
    assert build(overlay, {"edits.0.remove": "red car", "edits.0.target": "a road"}).notes == ()
    told = parse(["--remove", "red car"]).settings.notes
    assert "edit 0: the target is 'moving on the sand', the source without 'red car'" in told


def test_what_cannot_be_removed():
    with pytest.raises(FzError, match="'blue car' is not in the source 'a red car'"):
        without("a red car", "blue car")
    with pytest.raises(FzError, match="Did you mean 'jeep'"):
        without("a silver jeep on a road", "jepe")
    with pytest.raises(FzError, match="nothing is left"):
        without("a red car", "red car")


def test_enhancement_comes_last_and_once():
    assert enhanced("a red car.", "high-quality,  8K") == "a red car, high-quality, 8K"
    assert enhanced("a red car, high-quality, 8K", "high-quality, 8K") == "a red car, high-quality, 8K"
    assert enhanced("a blue car, watercolor", "color") == "a blue car, watercolor, color"
    assert enhanced("a red car, 8K.", "8k") == "a red car, 8K."
    assert target_of("a red car on sand", None, "red car", "8K") == "on sand, 8K"
    assert target_of("a red car", "a blue car", None, "8K") == "a blue car, 8K"
    assert target_of("a red car on sand", "an empty beach", "red car", None) == "an empty beach"


# ---- settings ----------------------------------------------------------------------------------------------

BASE = ["--checkpoint", "model", "--video", "clip.mp4", "--source", "a red car on the sand"]


def edits_of(*argv):
    return parse([*BASE, *argv]).settings.edits


def test_removal_and_enhancement_need_no_target():
    (edit,) = edits_of("--remove", "red car")
    assert (edit.target, edit.align, edit.threshold) == ("on the sand", "refine", 0.3)
    (edit,) = edits_of("--enhance", "8K", "--enhance-factor", "3")
    assert (edit.target, edit.enhance_factor, edit.threshold) == ("a red car on the sand, 8K", 3, None)
    (edit,) = edits_of("--remove", "red car", "--enhance", "8K", "--threshold", "0.5", "--self-replace", "0.1")
    assert (edit.target, edit.threshold, edit.self_replace) == ("on the sand, 8K", 0.5, (0, 0.1))


def test_one_of_several_edits_removes():
    edits = edits_of("--target", "a blue car on the sand", "--remove.1", "red car", "--mask.0", "m.png")
    assert [e.target for e in edits] == ["a blue car on the sand", "on the sand"]
    assert [e.remove for e in edits] == [None, "red car"] and [e.mask for e in edits] == ["m.png", None]
    with pytest.raises(FzError, match=r"target: got none for edit \.0"):
        edits_of("--remove.1", "red car")


def test_a_removal_from_the_example_has_no_use_for_its_target():
    assert parse(["--remove", "red car"]).settings.edits[0].target == "moving on the sand"
    assert parse(["--enhance", "8K"]).settings.edits[0].target == "a blue car moving on the sand, 8K"


@pytest.mark.parametrize("kind", ["style", "attribute", "shape"])
def test_a_removal_has_a_mask_in_every_kind_of_edit(kind, text):
    (edit,) = edits_of("--edit", kind, "--remove", "red car")
    assert edit.threshold == 0.3
    region = plan_edit(edit, text.tokens("a red car on the sand"), text.tokens(edit.target), 10).region
    assert region.hides_object and region.has_mask
    assert edits_of("--remove", "red car", "--threshold", "none")[0].threshold == 0.3
    with pytest.raises(FzError, match="^threshold: got 1.0 with a removal"):
        edits_of("--edit", kind, "--remove", "red car", "--threshold", "1")
    assert edits_of("--remove", "red car", "--threshold", "1", "--mask", "m.png")[0].threshold == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--remove", "red car"],
        ["--remove", "red car", "--threshold", "none"],
        ["--enhance", "8K, sharp", "--reweight", "8K=5"],
        ["--remove", "car", "--keep-background", "--mask", "m.png", "--refine"],
    ],
)
def test_a_report_s_command_gives_the_same_settings(argv):
    import shlex

    settings = parse([*BASE, *argv]).settings
    again = parse(shlex.split(command(as_json(settings)))[3:]).settings
    assert again.edits == settings.edits


@pytest.mark.parametrize(
    ("name", "value"), [("remove", " , "), ("enhance", ""), ("enhance_factor", float("nan")), ("remove", 3)]
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(FzError, match=f"^{name}: got"):
        build({"clip.path": "c", "source": "a red car on sand", "edits.0.target": "sand", f"edits.0.{name}": value})


# ---- plans -------------------------------------------------------------------------------------------------


def planned(text, source, target, **settings):
    return plan_edit(EditSettings(target, **settings), text.tokens(source), text.tokens(target), 10)


def marked(text, sentence, weights):
    """The words whose tokens are marked."""
    tokens = text.tokens(sentence)
    return [word.text for word in tokens.words if weights[list(word.positions)].all()]


def test_a_removal_hides_its_words_and_refines(text):
    source, target = "a red car and a blue ball moving on the sand", "a blue ball moving on the sand"
    plan = planned(text, source, target, remove="red car", align="refine", threshold=0.3, keep_background=True)
    where = plan.region
    assert where.hides_object
    assert marked(text, source, where.mask_words) == marked(text, source, where.background) == ["red", "car"]
    tokens = text.tokens(target)
    assert plan.fusion.alpha[: tokens.used].all(), "every word of the target is one of the source's"
    assert not planned(text, source, target, threshold=0.3).region.hides_object


@pytest.mark.parametrize(
    "settings", [{}, {"align": "plain"}, {"blend_words": (("car",), ())}], ids=["usual", "plain", "other blend words"]
)
def test_what_is_to_be_removed_has_to_be_there(settings, text):
    """Beside a target of its own it was passed over, or called a blend word."""
    with pytest.raises(FzError, match="^remove: 'card' is not in the prompt .* Did you mean 'car'"):
        planned(text, "a red car on the sand", "a blue car on the sand", remove="card", threshold=0.3, **settings)


def test_several_edits_at_once_are_all_under_the_mask(text):
    source, target = "a red car and a blue ball moving on the sand", "a green car and a yellow ball moving on the grass"
    where = planned(text, source, target, threshold=0.3, blend_latents=0.3).region
    assert marked(text, source, where.mask_words) == ["red", "blue", "sand"]
    assert marked(text, target, where.latent_blend.target_words) == ["green", "yellow", "grass"]


def test_a_swap_and_a_style_in_one(text):
    source, target = "a red car moving on the sand", "watercolor painting of a blue car moving on the sand"
    plan = planned(text, source, target, align="refine", threshold=0.3)
    assert marked(text, source, plan.region.mask_words) == ["red"]
    new = [word.text for word in text.tokens(target).words if not plan.fusion.alpha[list(word.positions)].any()]
    assert new == ["watercolor", "painting", "of", "blue"]


def test_enhancing_words_are_new_and_amplified(text):
    source = "a red car moving on the sand"
    target = enhanced(source, "high-quality, 8K")
    plan = planned(text, source, target, enhance="high-quality, 8K", enhance_factor=3.0, reweight=(("8K", 5.0),)).fusion
    words = {word.text: set(plan.equalizer[list(word.positions)].tolist()) for word in text.tokens(target).words}
    assert words["high-quality,"] == {3.0} and words["8K"] == {5.0} and words["car"] == {1.0}
    assert not plan.alpha[list(text.tokens(target).words[-1].positions)].any()


def test_a_background_without_a_mask_is_an_error(text):
    with pytest.raises(FzError, match="no word of the source differs"):
        planned(text, "a red car", "watercolor painting of a red car", keep_background=True)
    assert (
        planned(
            text, "a red car", "watercolor painting of a red car", keep_background=True, mask="m.png"
        ).region.background
        is not None
    )


def test_what_does_not_count_without_fusion_is_said(text):
    """A background is kept all the same; nothing else that was asked for goes without a word."""
    plain, red, blue = {"align": "plain"}, "a red car", "a blue car"
    assert planned(text, red, blue, **plain).notes == ("edit: sampled without fusion",)
    said = {
        "what is removed is not hidden": {"remove": "red"},
        "threshold and blend_latents count for nothing": {"threshold": 0.3, "blend_latents": 0.3},
        "mask counts for nothing": {"mask": "m.png"},
        "reweight counts for nothing": {"reweight": {"blue": 2.0}},
    }
    for line, settings in said.items():
        plan = planned(text, red, blue, **plain, **settings)
        assert plan.notes == (f"edit: sampled without fusion; {line}",) and plan.region == EVERYWHERE
    for settings in ({"threshold": 0.4}, {"mask": "m.png"}):
        plan = planned(text, red, blue, **plain, keep_background=True, **settings)
        assert plan.notes[0] == "edit: sampled without fusion" and plan.fusion is None
        assert marked(text, red, plan.region.background) == ["red"]
        assert plan.region.threshold == settings.get("threshold", 0.3)
    with pytest.raises(FzError, match="no word of the source differs"):
        planned(text, red, "watercolor painting of a red car", **plain, keep_background=True)


# ---- hidden keys -------------------------------------------------------------------------------------------


class Fixed:
    """Operands that are given."""

    def __init__(self, q, k, v):
        self.all, self.shape, self.tokens = (q, k, v), q.shape[:3], q

    def q(self, branches=slice(None)):
        return self.all[0][branches]

    def k(self, branches=slice(None)):
        return self.all[1][branches]

    def v(self, branches=slice(None)):
        return self.all[2][branches]


@pytest.mark.parametrize("stride", [1, 2])
def test_no_row_sees_what_is_hidden(stride):
    side = 8 // stride
    site = Site("attn1", "self", stride, 8)
    mask = torch.zeros(2, side, side, dtype=torch.bool)
    mask[0, 1:3, :2], mask[1, 2:, 1] = True, True
    hidden = mask.flatten(1)
    q, k, v = (numbers(i, 2, 2, side * side, 2, 4) for i in range(3))
    kept = {"attn1": (numbers(3, 2, side * side, 2, 4), numbers(4, 2, side * side, 2, 4))}

    def out(hides_object, k, v, kept):
        fuser = Fuser(FrameIndex((0, "mid")), fusion().at(0), kept, None, {stride: mask}, hides_object)
        return fuser(site, Fixed(q, k, v))

    def disturbed(x):
        return torch.where(hidden[..., None, None], 50 * numbers(9, *x.shape), x)

    other = disturbed(k), disturbed(v), {"attn1": (kept["attn1"][0], disturbed(kept["attn1"][1]))}
    assert torch.equal(out(True, k, v, kept), out(True, *other))
    assert not torch.equal(out(False, k, v, kept), out(False, *other))
    # what is seen does count
    assert not torch.equal(out(True, k, v, kept), out(True, k, torch.where(hidden[..., None, None], v, v + 1), kept))


def test_a_mask_that_covers_a_frame_hides_nothing_of_it():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    assert surroundings(mask).tolist() == [[True, True, True], [False, True, False], [True, True, True]]


# ---- masks -------------------------------------------------------------------------------------------------


def disc(frames, side):
    """Shares of a picture four times as large as a latent of 16: another disc in each frame."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return torch.stack(
        [((x / side - 0.4 - 0.1 * f) ** 2 + (y / side - 0.5) ** 2 < 0.09).float() for f in range(frames)]
    )


def test_the_user_s_mask_is_at_every_size(unet):  # noqa: F811
    shares = disc(FRAMES, 64)
    where = region(user_mask=shares, mask_words=None)
    source, task = inverted(unet), Edit(TARGET, fusion(self_window=(0, STEPS)), where)
    for k in range(STEPS):
        masks = masks_of(model_of(unet), source, task, k)
        assert set(masks) == {s.stride for s in unet.sites() if s.kind == "self"} - {1} != set()
        for stride, m in masks.items():
            h, w = 16 // stride, 16 // stride
            blocks = shares.reshape(FRAMES, h, 64 // h, w, 64 // w).mean((2, 4))
            assert torch.equal(m, blocks > 0.5 * blocks.amax((1, 2), keepdim=True)) and 0 < m.float().mean() < 1
    removal = dataclasses.replace(where, hides_object=True)
    assert 1 in self_masks(removal, unet.sites(), source.maps[SCHEDULE.timesteps[0]], (16, 16))


def test_the_user_s_mask_decides_the_edit(unet):  # noqa: F811
    source = inverted(unet)
    wheres = [region(user_mask=shares) for shares in (disc(FRAMES, 64), 1 - disc(FRAMES, 64))]
    ends = [edited(unet, source, fusion(), where=where)[-1] for where in wheres]
    assert not torch.allclose(*ends, atol=1e-3) and not torch.allclose(
        ends[0], edited(unet, source, fusion())[-1], atol=1e-3
    )


@pytest.mark.parametrize("user", [True, False], ids=["user's mask", "words"])
def test_the_background_s_latents_are_the_source_s_to_the_bit(unet, user):  # noqa: F811
    words, shares = region().mask_words, disc(FRAMES, 64) if user else None
    where = region(background=words, latent_blend=None, threshold=0.8, user_mask=shares)
    source = inverted(unet)
    # two words of a random model are seen everywhere: now they are seen in one place a frame
    peaked = torch.zeros_like(source.maps[SCHEDULE.timesteps[0]])
    peaked[range(FRAMES), [5, 6, 9], 2] = 1
    source.maps = dict.fromkeys(source.maps, peaked)
    changes = foreground(where, source.maps, (16, 16))
    assert 0 < changes.float().mean() < 1
    if user:
        assert torch.equal(changes, reduced(disc(FRAMES, 64), (16, 16)))
    outside = ~changes[:, None].expand_as(Z0)
    latents = edited(unet, source, fusion(), where=where)
    times = [*SCHEDULE.timesteps[1:], CLEAN]
    assert len(latents) == len(times)
    for z, t in zip(latents, times, strict=True):
        assert torch.equal(z[outside], source.latents[t][outside])
        assert not torch.isclose(z[~outside], source.latents[t][~outside]).all()
    assert foreground(region(), source.maps, (16, 16)) is None


def test_pasted_pixels():
    frames, source = numbers(1, 2, 3, 32, 32), numbers(2, 2, 3, 32, 32)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 3:6, 4:] = True
    out = paste_background(frames, source, mask)
    assert torch.equal(out[:, :, 12:24, 16:], frames[:, :, 12:24, 16:]), (
        "inside, and up to the border, it is the edit's"
    )
    far = torch.ones(32, 32, dtype=torch.bool)
    far[12 - 8 : 24 + 8, 16 - 8 :] = False
    assert torch.equal(out[..., far], source[..., far]), "two cells away it is the source's"
    edge = ((out - source) / (frames - source))[0, 0, 18, :16]
    assert (edge.diff() >= -1e-4).all() and 0.05 < edge[13] < 0.95, "between, it goes over softly"
    assert torch.equal(paste_background(frames, source, torch.zeros_like(mask)), source)
    assert torch.equal(paste_background(frames, source, torch.ones_like(mask)), frames)


def pictures(folder, arrays):
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}.png")
    return str(folder)


def test_masks_are_cut_and_chosen_as_the_clip_is(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [(rng.random((6, 10)) < 0.5).repeat(8, 0).repeat(8, 1).astype(np.uint8) * 255 for _ in range(7)]
    clip = ClipSettings(
        pictures(tmp_path / "clip", [np.stack([m] * 3, -1) for m in drawn]),
        3,
        start=1,
        every=2,
        size=32,
        crop=Crop(8, 0, 0, 8),
    )
    video = read_clip(clip, 32)
    expected = (video.frames.mean(1) > 0).float()
    long = read_mask(pictures(tmp_path / "long", drawn), clip, video)
    assert torch.equal(long, expected) and 0.2 < long.mean() < 0.8
    assert torch.equal(read_mask(pictures(tmp_path / "short", drawn[1:7:2]), clip, video), long)
    one = read_mask(str(tmp_path / "long" / "003.png"), clip, video)
    assert torch.equal(one, expected[1].expand(3, -1, -1))


# ---- runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path):
    size = Image.open(
        next(p for p in sorted((mini.FOLDER / "example").iterdir()) if p.suffix in (".png", ".webp", ".jpg"))
    ).size
    white = np.full(size[::-1], 255, np.uint8)
    half = white.copy()
    half[:, size[0] // 2 :] = 0
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.fromarray(0 * white).save(tmp_path / "black.png")
    Image.fromarray(white[::2]).save(tmp_path / "small.png")
    (tmp_path / "words.png").write_text("no picture")
    pictures(tmp_path / "five", [half] * 5)
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return ["--cache", str(tmp_path_factory.mktemp("cache"))]


RUN = ["--steps", "4", "--frames", "2", "--size", "64", "--threads", "1", "--device", "cpu", "--guidance", "4"]
BLUE = ["--target", "a blue car moving on the sand"]


@needs_miniature
@pytest.mark.parametrize(
    "flags",
    [
        ["--remove", "red car"],
        ["--enhance", "high-quality, 8K"],
        [*BLUE, "--mask", "half.png"],
        [*BLUE, "--keep-background"],
        [*BLUE, "--align", "plain", "--keep-background"],
        [*BLUE, "--align", "plain", "--keep-background", "--mask", "half.png"],
        ["--remove", "red car", "--keep-background", "--mask", "half.png", "--blend-latents", "0.3"],
        ["--target", "watercolor painting of a blue car moving on the sand", "--edit", "shape", "--refine"],
    ],
    ids=lambda flags: " ".join(flag for flag in flags if flag.startswith("--")),
)
def test_every_flag_runs_on_the_miniature(flags, masks, cache):
    flags = [str(masks / flag) if flag.endswith(".png") else flag for flag in flags]
    out = masks / "out"
    assert main([*flags, *RUN, *cache, "--out", str(out)]) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "done"
    source, made = (
        np.asarray(Image.open(out / "frames" / name / "00001.png")).astype(int) for name in ("source", "edit-0")
    )
    assert np.abs(source - made).max() > 8, "something is edited"
    side = source.shape[1]
    if "--keep-background" in flags and "--mask" in flags:
        assert np.array_equal(source[:, side // 2 + 8 :], made[:, side // 2 + 8 :])


@needs_miniature
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--remove", "blue boat"], "remove: 'blue boat' is not in the source"),
        (["--remove", ""], "remove: got ''"),
        (["--enhance", " "], "enhance: got ' '"),
        (["--enhance-factor", "much", "--enhance", "8K"], "got 'much', expected a number"),
        ([*BLUE, "--mask", "none.png"], "mask: "),
        ([*BLUE, "--mask", "words.png"], "mask: "),
        ([*BLUE, "--mask", "black.png"], "mask: nothing in black.png is white"),
        ([*BLUE, "--mask", "small.png"], "Expected the clip's size"),
        ([*BLUE, "--mask", "five"], "holds 5 pictures, expected 1 or 2"),
        (
            ["--target", "watercolor painting of a red car moving on the sand", "--keep-background"],
            "keep_background: no word",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(flags, said, masks, capsys, cache):
    flags = [str(masks / flag) if flag.endswith(".png") or flag == "five" else flag for flag in flags]
    assert main([*flags, *RUN, *cache, "--out", str(masks / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines


# ---- what measures removal ---------------------------------------------------------------------------------


@pytest.mark.skipif(not mini.EYE.is_file(), reason="weights/mini has no judge yet")
def test_the_judge_of_removals():
    """It finds the thing itself, one of another colour or elsewhere, mostly its ghost; in the true empty scene
    nothing.
    """
    eye, found = load_eye(), {}
    for i in range(6):
        story = held_out_story(i)
        drawn, empty = as_given(story, 2, 64), as_given(dataclasses.replace(story, things=()), 2, 64)
        area, thing = drawn.masks[0], story.things[0]
        other = counterfactual(story, colour="cyan" if thing.colour != "cyan" else "red")
        half = (0.5 * drawn.frames + 0.5 * empty.frames).astype(np.uint8)
        shown = {
            "itself": drawn.frames,
            "another": as_given(other, 2, 64).frames,
            "moved": np.roll(drawn.frames, 8, 2),
            "its ghost": half,
        }
        for name, frames in (shown | {"nothing": empty.frames}).items():
            found.setdefault(name, []).extend(remains(eye, frames, empty.frames, area, thing.colour))
    shares = {name: np.mean(values) for name, values in found.items()}
    # half transparent and of its scene's colour it can be missed: the PSNR to the empty scene is there for that
    assert shares.pop("nothing") == 0 and shares.pop("its ghost") > 0.8 and min(shares.values()) == 1, shares
