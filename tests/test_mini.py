"""The miniature: its tokenizer, its VAE's start, what judges its pictures, its export, and, where its data is shipped,
the default run.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_model import spoken

from fz import mini
from fz.ddim import Schedule
from fz.mini import bars, controlled, edited, evaluate, evaluation, figures, words
from fz.mini.data import HELD_OUT, as_given, draw_many, held_out
from fz.mini.eye import Eye, errors, hue_name, load_eye, look, outline_iou, steadiness
from fz.mini.folder import EXAMPLE, export
from fz.mini.sampled import sample
from fz.mini.shape import UNET, VAE_JSON
from fz.mini.state import write_averages
from fz.mini.training import new_text_model
from fz.mini.vae_training import unit_latents
from fz.mini.warm import warm_start
from fz.mini.world import COLOURS, KINDS, Story, Thing, caption, draw, draw_frame, sample_story, vocabulary
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import SCALE, VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.results.lock import Lock
from fz.settings.config import PRESETS
from fz.weights.load import load_checkpoint

SHIPPED = (mini.FOLDER / "unet").is_dir()
needs_data = pytest.mark.skipif(not SHIPPED, reason="weights/mini has no checkpoint yet")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return words.new_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, tokenizer):
    """A training's state as it is after no step at all, and its export."""
    state, out = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    vae = VAE(VAEConfig.from_json(VAE_JSON))
    warm_start(vae)
    text = new_text_model(len(tokenizer), tokenizer.start, tokenizer.end)
    modules = torch.nn.ModuleDict({"unet": UNet(UNetConfig.from_json(UNET)), "text": text})
    write_averages(state, modules.state_dict())
    torch.save(vae.state_dict(), state / "vae-final.pt")
    (state / "log.csv").write_text("step,seconds,pictures,size,loss,placing\n")
    assert export(state, out) == "no pictures"
    return modules, vae, out


def pictures(count: int, size: int) -> torch.Tensor:
    """Held-out pictures in [-1, 1]."""
    drawn = np.stack([draw_frame(held_out(i), 0.4, size) for i in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_every_caption_is_spelled_and_some_words_are_two_tokens(tokenizer):
    encoder = TextEncoder(tokenizer, None)
    for seed in range(40):
        sentence = caption(sample_story(seed))
        found = encoder.tokens(sentence)
        assert spoken(tokenizer, found.ids) == sentence
        assert [len(word.positions) for word in found.words] == [
            len(words.SPLIT.get(w, (w,))) for w in sentence.split()
        ]
    assert set(words.SPLIT) <= set(vocabulary())


def test_words_that_it_does_not_know_are_spelled_in_bytes(tokenizer):
    assert spoken(tokenizer, TextEncoder(tokenizer, None).tokens("a zebra – 7").ids) == "a zebra – 7"


def test_the_vae_starts_as_block_averages_with_their_colours():
    torch.manual_seed(0)
    vae = VAE(VAEConfig.from_json(VAE_JSON))
    x = pictures(4, 64)
    with torch.no_grad():
        before = vae.decode(vae.encode(x))
        warm_start(vae)
        after = vae.decode(vae.encode(x))
    error, random = ((y - x).square().mean().item() for y in (after, before))
    assert error < 0.05 < random
    # colours, over all of the picture, survive
    assert np.corrcoef(x.mean((2, 3)).flatten(), after.mean((2, 3)).flatten())[0, 1] > 0.9


def test_latents_get_unit_deviation_and_the_vae_stays_the_same():
    torch.manual_seed(0)
    vae = VAE(VAEConfig.from_json(VAE_JSON)).eval()
    warm_start(vae)
    x = (pictures(8, 64) + 1) * 127.5
    unit = x / 127.5 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(unit))
        unit_latents(vae, x.to(torch.uint8)[:, None])
        z = SCALE * vae.encode(unit)
        after = vae.decode(vae.encode(unit))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)
    # edges of the picture apart: a 1x1 convolution has no padding, so there are none
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)


def test_training_pictures_are_not_held_out():
    with pytest.raises(ValueError, match="held out"):
        draw_many(HELD_OUT - 1, 2)


def test_export_is_a_checkpoint_with_the_trained_weights(fresh):
    modules, vae, out = fresh
    loaded = load_checkpoint(out)
    assert not loaded.tuned
    for mine, theirs in ((modules["unet"], loaded.unet), (vae, loaded.vae), (modules["text"], loaded.text.model)):
        for key, t in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[key], t.half().float(), rtol=0, atol=0)
    assert sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) < 30e6
    assert Schedule.from_config(loaded.scheduler, 50).timesteps[0] == 981


def test_sampling_is_finite_and_does_not_depend_on_the_company(fresh):
    loaded = load_checkpoint(fresh[2])
    both = sample(loaded, ["a blue star moving on the grass", "a red car"], seed=3, steps=2, size=64)
    alone = sample(loaded, ["a red car"], seed=4, steps=2, size=64)
    assert both.shape == (2, 3, 64, 64) and torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], alone)


def test_evaluation_measures_once_has_every_bar_and_goes_on(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_eye", lambda: Eye().eval())
    setup, jobs = edited.Setup(frames=2, size=64, steps=2, picture_steps=1), [(part, 0) for part in figures.MEASURES]
    rows = [row for found in evaluation.evaluate(setup, str(fresh[2]), jobs, tmp_path) for row in found]
    names = [name for _, name, _ in rows]
    assert len(names) == len(set(names)) and set(bars.BARS) <= set(names)
    assert {name for pair in bars.ORDERINGS for name in pair} <= set(names)
    # of the second clip nothing, of the first all that the file has, unless the key is another
    bench = edited.Bench(load_checkpoint(fresh[2]), Eye().eval(), setup)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(files) == len(jobs)
    (file,) = tmp_path.glob("one-of-two-0000-*.json")
    content = json.loads(file.read_text())
    monkeypatch.setitem(figures.MEASURES, "one of two", lambda bench, i: iter([figures.Figure("again", True)]))
    before = [(0, name, value) for name, value in content["figures"].items()]
    assert evaluation.figures_of(bench, evaluation.OWN[0][1], tmp_path, "one of two", 0) == before
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert evaluation.figures_of(bench, "other", tmp_path, "one of two", 0) == [(0, "again", 1.0)]
    file.write_text("{")
    assert evaluation.figures_of(bench, evaluation.OWN[0][1], tmp_path, "one of two", 0) == [(0, "again", 1.0)]


@pytest.mark.parametrize(
    ("part", "table", "name"),
    [
        ("clip", PRESETS, "shape"),
        ("clip", figures.VARIANTS, "style"),
        ("ablation", figures.ABLATIONS, "shape"),
        ("ablation", figures.REMOVAL, "threshold"),
        ("removal", figures.REMOVALS, "plain"),
        ("one of two", PRESETS, "attribute"),
        ("control", controlled.VARIANTS, "shape"),
        ("picture", None, ""),
    ],
)
def test_figures_are_measured_again_when_an_edits_settings_change(tmp_path, monkeypatch, part, table, name):
    measured = []
    measure = lambda bench, i: measured.append(1) or iter([figures.Figure("x", 1.0)])  # noqa: E731
    monkeypatch.setitem(figures.MEASURES, part, measure)
    monkeypatch.setattr(evaluation, "measure_control", measure)
    evaluation.figures_of(None, "key", tmp_path, part, 0)
    evaluation.figures_of(None, "key", tmp_path, part, 0)
    assert len(measured) == 1
    if table is not None:
        monkeypatch.setitem(table, name, {"threshold": 0.9})
        evaluation.figures_of(None, "key", tmp_path, part, 0)
        assert len(measured) == 2 and len(list(tmp_path.iterdir())) == 2
    evaluation.figures_of(None, "another bench", tmp_path, part, 0)
    assert len(measured) == (2 if table is None else 3)


def test_an_evaluations_folder_is_one_processs_at_a_time(fresh, tmp_path, capsys):
    with Lock(tmp_path):
        assert evaluate.main(["--checkpoint", str(fresh[2]), "--out", str(tmp_path)]) == 2
    assert "is being written by this program itself" in capsys.readouterr().err


def test_the_key_is_of_the_settings_and_the_weights(fresh):
    loaded, eye = load_checkpoint(fresh[2]), Eye().eval()
    keys = [edited.Bench(loaded, eye, edited.Setup(steps=steps)).key() for steps in (4, 4, 5)]
    with torch.no_grad():
        loaded.unet.conv_in.bias[0] += 1
    keys.append(edited.Bench(loaded, eye, edited.Setup(steps=4)).key())
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_table_sets_figures_beside_bars_and_orderings_beside_chance():
    better, worse = bars.ORDERINGS[0]
    rows = [
        (0, "vae psnr at 128 px", 29.0),
        (1, "vae psnr at 128 px", 30.0),
        (0, "blend mask: iou", 0.9),
        (0, "other", 1.0),
    ]
    rows += [(i, name, 20.0 + (name == better) + 0.1 * i) for i in range(4) for name in (better, worse)]
    lines = {line.split("  ")[0]: line for line in bars.table(rows)}
    assert all(part in lines["vae psnr at 128 px"] for part in ("SHORT", "29.500", "23.147 … 35.853"))
    assert "reached" in lines["blend mask: iou"] and "reached" not in lines["other"]
    assert any(
        line.startswith(f"  holds  {better} > {worse}: +1.000 ± 0.000  (100% of 4)") for line in bars.table(rows)
    )
    assert bars.table(rows)[-1] == "  1 holds, 0 undecided, 0 fails"
    mixed = [
        (i, name, value) for i, value in enumerate((2.0, -1.0, 0.5)) for name, value in ((better, value), (worse, 0.0))
    ]
    for found in (mixed, [(i, name, -value) for i, name, value in mixed]):
        undecided = next(line for line in bars.table(found) if line.startswith("  undecided"))
        clips = int(undecided.rsplit("about ", 1)[1].split()[0])
        # Student's interval of (2, -1, 0.5) is 0.5 ± 3.73
        assert clips == pytest.approx(3 * (3.726 / 0.5) ** 2, abs=1)
    failing = [(i, name, value) for i in range(5) for name, value in ((better, 1.0), (worse, 2.0 + 0.1 * i))]
    assert any(line.startswith("  FAILS") for line in bars.table(failing))


def test_intervals_of_shares_are_wilson_s():
    # Wilson 1927, as tables have it: 8 of 10
    low, high = bars.interval("text to image: kind", np.array([1.0] * 8 + [0.0] * 2))
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert bars.interval("text to image: kind", np.ones(20))[0] == pytest.approx(0.8389, abs=1e-3)


def test_a_clip_as_given_is_the_drawn_one_shrunk_with_its_truth():
    story = held_out(5, two=False)
    large, small = draw(story, 3, 128), as_given(story, 3, 64)
    assert (
        small.frames.shape == (3, 64, 64, 3)
        and small.masks.shape == (1, 3, 64, 64)
        and small.flow.shape == (2, 64, 64, 2)
    )
    assert abs(small.frames.astype(float).mean() - large.frames.mean()) < 0.1
    inside = small.masks[0, 0]
    np.testing.assert_allclose(small.flow[0][inside].mean(0), large.flow[0][large.masks[0, 0]].mean(0) / 2, atol=0.02)
    assert as_given(story, 1, 64).flow.shape == (0, 64, 64, 2)
    assert np.array_equal(as_given(story, 2, 48).frames, draw(story, 2, 48).frames)


def test_true_pictures_reach_what_is_measured():
    """The measures give counterfactuals full marks: same colours by hue, no change along the motion, endless PSNR."""
    story = Story((Thing("ball", "cyan"),), "road", drift=0.03)
    drawn = draw(story, 4)
    wrong = figures.change(drawn.frames, np.zeros_like(drawn.flow), np.ones(drawn.flow.shape[:3], bool))
    assert figures.change(drawn.frames, drawn.flow, np.ones(drawn.flow.shape[:3], bool)) < 0.6 * wrong


@pytest.mark.parametrize("colour", COLOURS)
def test_hue_in_the_true_mask_is_the_colour(colour):
    right = []
    for i in range(12):
        story = held_out(i, two=False, style="plain")
        story = dataclasses.replace(story, things=(dataclasses.replace(story.things[0], colour=colour),))
        drawn = draw(story, 1)
        right.append(hue_name(drawn.frames[0], drawn.masks[0, 0]) == colour)
    assert np.mean(right) > 0.9


def test_grey_has_no_colour():
    grey = np.full((8, 8, 3), 120, np.uint8)
    assert hue_name(grey, np.ones((8, 8), bool)) is None
    assert hue_name(grey, np.zeros((8, 8), bool)) is None


@needs_data
def test_what_ships_is_small_whole_and_its_example_is_of_its_words():
    loaded = load_checkpoint(mini.checkpoint())
    assert sum(f.stat().st_size for f in mini.FOLDER.rglob("*") if f.is_file()) < 30e6
    example = mini.example()
    known = set(vocabulary())
    assert set(example["source"].split()) <= known and set(example["edits.0.target"].split()) <= known
    assert example["source"] == caption(EXAMPLE)
    assert json.loads((mini.FOLDER / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert loaded.unet.config.cross_attention_dim == loaded.text.model.config.hidden_size


@needs_data
def test_the_eye_sees_drawn_pictures_right():
    found = errors(load_eye(), 40)
    assert found["scene"] > 0.9 and found["kind"] > 0.85 and found["style"] > 0.9 and found["mask"] > 0.7
    # of two things, each in its half
    assert found["kind of each of two"] > 0.85 and found["colour of each of two"] > 0.9 and found["steadiness"] > 0.9


@needs_data
def test_an_outline_that_wobbles_or_is_another_s_scores_low():
    eye = load_eye()

    def seen(story, thing, **changes):
        changed = dataclasses.replace(story, things=(dataclasses.replace(thing, **changes),))
        return np.stack([s.mask for s in look(eye, draw(changed, 4).frames)])

    same, other, still, wobbling = [], [], [], []
    for i in range(6):
        story = figures.held_out_story(9000 + i)
        thing = story.things[0]
        masks, larger = seen(story, thing), seen(story, thing, size=1.1 * thing.size)
        recoloured = seen(story, thing, colour="blue" if thing.colour != "blue" else "red")
        same.append(outline_iou(masks, recoloured))
        other.append(outline_iou(masks, seen(story, thing, kind="star" if thing.kind != "star" else "car")))
        still.append(steadiness(masks, thing))
        masks[1::2] = larger[1::2]
        wobbling.append(steadiness(masks, thing))
    assert np.mean(same) > 0.87 > 0.65 > np.mean(other)
    assert np.mean(still) > 0.92 > 0.88 > np.mean(wobbling)


def test_outlines_are_compared_frame_by_frame():
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :2], b[0, :4] = True, True  # a half of it; and nothing in both second frames
    assert outline_iou(a, b) == pytest.approx(0.75)
    b[1, 0, 0] = True
    assert outline_iou(a, b) == pytest.approx(0.25)


@pytest.mark.parametrize("turn", [0.0, 0.6])
def test_true_outlines_are_steady_along_their_motion(turn):
    thing = Thing("car", "red", (0.4, 0.5), (0.6, 0.55), 0.4, turn=turn)
    masks = draw(Story((thing,), "sand"), 5).masks[0]
    assert steadiness(masks, thing) > 0.95
    # not moved along, the same masks are not
    assert steadiness(masks, dataclasses.replace(thing, end=thing.start)) < 0.9
    with pytest.raises(ValueError, match="1 frame"):
        steadiness(masks[:1], thing)


@needs_data
def test_the_default_run(tmp_path):
    from fz import pipeline
    from fz.settings.parse import parse

    out = tmp_path / "out"
    result = pipeline.run(parse(["--steps", "2", "--frames", "2", "--out", str(out), "--cache", "none"]).settings)
    assert (out / "run.json").exists() and torch.isfinite(result.edits[0].frames).all()


@needs_data
def test_the_vae_that_ships_reconstructs():
    loaded, x = load_checkpoint(mini.checkpoint()), pictures(8, 128)
    with torch.no_grad():
        y = loaded.vae.decode(loaded.vae.encode(x)).clamp(-1, 1)
    assert (-10 * ((x - y) / 2).square().mean((1, 2, 3)).log10()).mean() > 26


def test_kinds_and_colours_are_as_many_as_asked():
    assert len(KINDS) >= 6 and len(COLOURS) == 8
