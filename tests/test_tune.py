"""One-shot tuning: what is trained, from where it starts, that it goes on to the same bits, and what it writes."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from random_weights import numbers, randomize, relative

from fz import tune as command
from fz.attention import Plain
from fz.ddim import Schedule
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.kernels import reference, torch_ops
from fz.model.layers import Site, TextContext
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.tuning import run
from fz.tuning import trainer as tuning
from fz.tuning.run import restore
from fz.tuning.settings import parse
from fz.weights.load import load_checkpoint

SMALL = UNetConfig(
    block_out_channels=(16, 24, 32, 32), heads=(2,) * 4, cross_attention_dim=12, norm_num_groups=4, layers_per_block=1
)
ALPHA_BARS = Schedule.from_config({}, 10).alpha_bars
RECIPES = tuning.RECIPES.values()


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    """What was learned is told by 8 draws rather than 64."""
    monkeypatch.setattr(tuning, "DRAWS", 8)


def small(dtype=torch.float32):
    return randomize(UNet(SMALL)).to(dtype, memory_format=torch.channels_last)


def lesson(dtype=torch.float32, frames=3):
    return tuning.Lesson(numbers(1, frames, 4, 8, 8).to(dtype), numbers(2, 77, 12).to(dtype))


def tuner(unet=None, recipe="fatezero", rate=1e-3, **options):
    recipe = tuning.RECIPES[recipe]
    return tuning.Tuner(
        tuning.inflate(unet or small(), recipe, rank=8), recipe, ALPHA_BARS, tuning.TrainingSettings(rate, **options)
    )


def test_keys_that_need_no_gradient_are_kept_for_that_of_the_queries():
    """As where only to_q is trained; anchors of later frames were written over those that a backward pass reads."""
    q, k, v = (numbers(seed, 1, 5, 16, 2, 40) for seed in (1, 2, 3))
    table = FrameIndex((-1, "first")).table(Site("x", "self", 1, 320), 5)
    found = []
    for of in (torch_ops, reference):
        x = q.clone().requires_grad_()
        of.self_attention(x, k, v, table).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_a_step_whose_second_lesson_has_no_finite_loss_changes_nothing():
    of = tuner(recipe="tune-a-video")
    bad = dataclasses.replace(lesson(), z=lesson().z.clone())
    bad.z[0, 0, 0, 0] = float("nan")
    before = {name: w.detach().clone() for name, w in of.weights.items()}
    with pytest.raises(FzError, match="the loss of step 1 is nan"):
        of.step([lesson(), bad])
    assert of.steps == 0 and all(torch.equal(before[name], w) for name, w in of.weights.items())
    alone = tuner(recipe="tune-a-video").loss(lesson(), 0).item()
    assert of.step([lesson(), lesson()]) == of.losses[-1] == pytest.approx(alone), "of the clip, not of class images"


@pytest.mark.parametrize("recipe", RECIPES, ids=tuning.RECIPES)
def test_it_begins_as_the_model_that_it_was_given(recipe):
    unet, x = small(torch.float64), lesson(torch.float64)
    inflated = tuning.inflate(unet, recipe, rank=8)
    assert inflated.config.temporal == Temporal(
        True, "low_rank" if recipe.conv else None, inflated.config.temporal.ranks
    )
    text = TextContext(x.embedding[None])
    with torch.no_grad():
        before, after = (u(x.z[None], 500, text, Plain(tuning.ANCHORS)) for u in (unet, inflated))
    assert relative(after, before) < 1e-12


@pytest.mark.parametrize("recompute", (True, False))
@pytest.mark.parametrize("name", tuning.RECIPES)
def test_gradients_are_plain_autograds_for_what_is_trained_and_none_elsewhere(name, recompute, monkeypatch):
    ours = tuner(small(torch.float64), name, recompute=recompute)
    # a temporal layer that is the identity hides half of its gradients
    randomize(ours.unet)
    tuning.trained(ours.unet, tuning.RECIPES[name])
    plain, x = copy.deepcopy(ours.unet).requires_grad_(True), lesson(torch.float64)

    t, eps = tuning.draw(0, 0, x.z.shape, len(ALPHA_BARS))
    noisy = ALPHA_BARS[t] ** 0.5 * x.z + (1 - ALPHA_BARS[t]) ** 0.5 * eps.double()
    monkeypatch.setenv("FZ_KERNELS", "reference")  # attention by its maps
    out = plain(noisy[None], t, TextContext(x.embedding[None]), Plain(tuning.ANCHORS))[0]
    ((out - eps) ** 2).mean().backward()
    expected = {key: p.grad for key, p in plain.named_parameters()}
    monkeypatch.delenv("FZ_KERNELS")

    monkeypatch.setattr(ours.optimiser, "step", lambda: None)
    kept = {}
    monkeypatch.setattr(
        ours.optimiser, "zero_grad", lambda **_: kept.update({k: p.grad for k, p in ours.unet.named_parameters()})
    )
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    ours.step([x])
    chosen = set(ours.weights)
    assert {key.split(".")[-2] for key in chosen if ".attn1." in key or ".attn2." in key} == {"to_q"}
    assert any(".attn_temporal.to_v." in key for key in chosen)
    assert any("conv_temporal" in key for key in chosen) == (name == "fatezero")
    assert {key for key, grad in kept.items() if grad is not None} == chosen
    for key in chosen:
        # the loss itself is float32's
        assert relative(kept[key], expected[key]) < 1e-5, key


def test_accumulated_draws_are_averaged():
    x, many = lesson(), tuner(accumulate=3)
    one = copy.deepcopy(many.unet)
    tuning.trained(one, tuning.RECIPES["fatezero"])
    reference = tuner(one)
    losses = [reference.loss(x, i) for i in range(3)]
    assert many.step([x]) == pytest.approx(sum(loss.item() for loss in losses) / 3, rel=1e-5)
    assert len({round(loss.item(), 5) for loss in losses}) == 3


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_draws_with_less_noise_weigh_less(power):
    x, plain = lesson(), tuner()
    unet = copy.deepcopy(plain.unet)
    tuning.trained(unet, tuning.RECIPES["fatezero"])
    weighted = tuner(unet, snr_power=power)
    for number in range(6):
        t, _ = tuning.draw(0, number, x.z.shape, len(ALPHA_BARS))
        snr = ALPHA_BARS[t] / (1 - ALPHA_BARS[t])
        assert weighted.loss(x, number).item() == pytest.approx(plain.loss(x, number).item() / snr**power, rel=1e-4)


def test_class_images_are_learned_beside_the_clip():
    x, kind = lesson(), tuning.Lesson(numbers(5, 1, 4, 8, 8), numbers(6, 77, 12), weight=0.5)
    alone, both, none = tuner(), tuner(), tuner()
    alone.step([x]), both.step([x, kind]), none.step([x, tuning.Lesson(kind.z, kind.embedding, 0.0)])
    changed = [relative(other.weights[k], alone.weights[k]) for other in (both, none) for k in alone.weights]
    assert max(changed[: len(alone.weights)]) > 1e-4 and max(changed[len(alone.weights) :]) == 0


@pytest.mark.parametrize("name", tuning.RECIPES)
def test_a_tuning_that_goes_on_has_the_same_bits(name, tmp_path):
    x, whole, begun = lesson(), tuner(recipe=name), tuner(recipe=name)
    for _ in range(4):
        whole.step([x])
    for _ in range(2):
        begun.step([x])
    torch.save(begun.state(), tmp_path / "state.pt")
    going_on = tuner(recipe=name)
    going_on.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        going_on.step([x])
    assert going_on.losses == whole.losses and going_on.steps == 4
    assert all(torch.equal(going_on.weights[k], whole.weights[k]) for k in whole.weights)


def test_another_recipes_state_is_refused():
    with pytest.raises(FzError, match="trains other layers"):
        tuner(recipe="fatezero").restore(tuner(recipe="tune-a-video").state())


DAMAGE = {
    "steps none": (("steps",), None), "steps text": (("steps",), "x"), "steps nan": (("steps",), float("nan")),
    "more steps than losses": (("steps",), 7), "fewer than none": (("steps",), -1),
    "a tensor": (("steps",), torch.zeros(3)),
    "losses none": (("losses",), None), "losses text": (("losses",), ["x"]),
    "loss infinite": (("losses",), [float("inf")]),
    "weights a list": (("weights",), []), "weights numbers": (("weights",), {"a": 1}), "scaler": (("scaler",), 3),
    "optimiser none": (("optimiser",), None), "moments none": (("optimiser", "state"), None),
    "moments text": (("optimiser", "state", 0), "x"), "a moment": (("optimiser", "state", 0, "exp_avg"), "x"),
    "its shape": (("optimiser", "state", 0, "exp_avg"), torch.zeros(3, 1, 4)), "all": ((), [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_odd_values_in_a_state_are_damage_and_change_nothing(name, tmp_path):
    path, value = DAMAGE[name]
    begun = tuner()
    begun.step([lesson()])
    state = copy.deepcopy(begun.state())
    holder = {"": state}
    node, path = holder, ("", *path)
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    state = holder[""]
    torch.save(state, tmp_path / "state.pt")
    other = tuner()
    before = {key: w.clone() for key, w in other.weights.items()}
    with pytest.raises(FzError, match="state.pt is damaged"):
        restore(other, tmp_path / "state.pt", torch.device("cpu"))
    assert other.steps == 0 and all(torch.equal(w, before[key]) for key, w in other.weights.items())


def test_a_rate_is_the_tunings_own_whatever_its_state_says():
    begun = tuner()
    begun.step([lesson()])
    state = begun.state()
    for group in state["optimiser"]["param_groups"]:
        group["lr"] = None
    going_on = tuner()
    going_on.restore(state)
    assert going_on.optimiser.param_groups[0]["lr"] == 1e-3 and going_on.steps == 1


def test_it_learns_the_clip():
    x, ours = lesson(), tuner(rate=1e-2)
    before = ours.fixed_loss(x)
    assert ours.fixed_loss(x) == before  # the draws are fixed
    for _ in range(20):
        ours.step([x])
    assert ours.fixed_loss(x) < 0.95 * before


# ---- the command -------------------------------------------------------------------------------------------


def arguments(shared, out, *more):
    golden = shared / "golden"
    return [
        "--checkpoint",
        str(golden / "tiny_sd"),
        "--video",
        str(golden / "clips/car128"),
        "--prompt",
        "a silver jeep on a road",
        "--size",
        "64",
        "--frames",
        "2",
        "--steps",
        "3",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--out",
        str(out),
        *more,
    ]


def test_the_folder_has_the_layout_of_the_released_code(shared, tmp_path, capsys):
    """Key names and shapes of golden/tiny_tuned, which the released code wrote; and fz reads what was trained."""
    out = tmp_path / "tuned"
    flags = ("--recipe", "fatezero", "--rate", "1e-3", "--sample-prompt", "a car", "--sample-steps", "2")
    assert command.main(arguments(shared, out, *flags)) == 0
    assert "loss on 8 fixed draws" in capsys.readouterr().out
    theirs = shared / "golden/tiny_tuned"
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    ):
        ours, expected = (torch.load(folder / name, weights_only=True) for folder in (out, theirs))
        assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in expected.items()}, name
    for name in ("unet/config.json", "vae/config.json", "model_index.json"):
        ours, expected = (json.loads((folder / name).read_text()) for folder in (out, theirs))
        assert ours == expected, name
    for path in theirs.rglob("*"):
        if path.name != "special_tokens_map.json":  # newer transformers keep it in tokenizer_config.json
            assert (out / path.relative_to(theirs)).exists(), path
    tuned, untuned = load_checkpoint(out), load_checkpoint(shared / "golden/tiny_sd")
    assert tuned.tuned and "low-rank" in tuned.report and tuned.scheduler == untuned.scheduler
    written = torch.load(out / "state.pt", weights_only=True)["weights"]
    state, before = tuned.unet.state_dict(), untuned.unet.state_dict()
    assert all(torch.equal(state[k], w) for k, w in written.items())
    assert {k for k in before if not torch.equal(state[k], before[k])} == {
        k for k in before if k.endswith("to_q.weight")
    }
    assert all(torch.equal(t, untuned.vae.state_dict()[k]) for k, t in tuned.vae.state_dict().items())
    assert tuned.text.tokens("a silver jeep").ids == untuned.text.tokens("a silver jeep").ids
    assert (out / "samples/00003-0.gif").stat().st_size and (out / "loss.png").stat().st_size
    assert len((out / "loss.csv").read_text().splitlines()) == 4


def test_the_same_command_goes_on_and_another_is_refused(shared, tmp_path, capsys):
    out = tmp_path / "tuned"
    assert command.main(arguments(shared, out)) == 0
    first = json.loads((out / "tuning.json").read_text())
    assert command.main(arguments(shared, out, "--steps", "5")) == 0
    assert "3 of 5 steps are in" in capsys.readouterr().out
    assert json.loads((out / "tuning.json").read_text())["untuned"] == first["untuned"]
    assert len((out / "loss.csv").read_text().splitlines()) == 6
    assert command.main(arguments(shared, out, "--rate", "1e-4")) == 2
    assert "another rate" in capsys.readouterr().err
    assert command.main(arguments(shared, out, "--rate", "1e-4", "--overwrite")) == 0
    assert len((out / "loss.csv").read_text().splitlines()) == 4


def test_fewer_steps_than_were_done_are_refused_and_change_nothing(shared, tmp_path, capsys):
    out = tmp_path / "tuned"
    assert command.main(arguments(shared, out)) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command.main(arguments(shared, out, "--steps", "2")) == 2
    assert "steps: got 2" in (err := capsys.readouterr().err) and "a tuning of 3" in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert command.main(arguments(shared, out, "--steps", "2", "--overwrite")) == 0
    assert len((out / "loss.csv").read_text().splitlines()) == 3


def other_pixels(file):
    Image.new("RGB", (64, 64), "blue").save(file)


def other_weights(file):
    state = torch.load(file, weights_only=True)
    torch.save(state | {"quant_conv.bias": state["quant_conv.bias"] + 1}, file)


CHANGES = {
    "clip/1.png": (other_pixels, "another dataset ("),
    "clip/0.txt": (lambda file: file.write_text("a green square"), "another dataset ("),
    "kind/1.png": (other_pixels, "another dataset ("),
    "kind/0.png": (lambda file: file.unlink(), "another dataset ("),
    "sd/vae/diffusion_pytorch_model.bin": (other_weights, "another encoding ("),
}


def test_a_tuning_does_not_go_on_with_another_dataset(shared, tmp_path, capsys):
    """Whose files have the old one's names."""
    shutil.copytree(shared / "golden/tiny_sd", tmp_path / "sd")
    for folder in (tmp_path / "clip", tmp_path / "kind"):
        folder.mkdir()
        for k in range(2):
            Image.new("RGB", (64, 64), (80 * k, 40, 90)).save(folder / f"{k}.png")
    (tmp_path / "clip/0.txt").write_text("a red square")
    flags = ("--checkpoint", str(tmp_path / "sd"), "--video", str(tmp_path / "clip"), "--lora-rank", "2")
    kind = ("--class-images", str(tmp_path / "kind"), "--class-prompt", "a square")
    argv, record = arguments(shared, tmp_path / "out", *flags, *kind), tmp_path / "out/tuning.json"
    assert command.main(argv) == 0
    before = content(tmp_path / "out")
    for name, (change, message) in CHANGES.items():
        old = (tmp_path / name).read_bytes()
        change(tmp_path / name)
        assert command.main([*argv, "--steps", "5"]) == 2 and message in capsys.readouterr().err, name
        (tmp_path / name).write_bytes(old)
    assert content(tmp_path / "out") == before
    assert command.main(argv) == 0
    assert "3 of 3 steps are in" in (said := capsys.readouterr().out) and "not known" not in said
    # a record of before there were such digests goes on, and that is said
    old = json.loads(record.read_text())
    record.write_text(json.dumps({k: v for k, v in old.items() if k not in ("dataset", "encoding")}))
    assert command.main([*argv, "--steps", "4"]) == 0
    assert "whether its clip, captions and class images are these is not known" in capsys.readouterr().out
    new = json.loads(record.read_text())
    assert new["dataset"] == old["dataset"] and new["encoding"] == old["encoding"]


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_taken_of_a_clip_is_said(shared, tmp_path, capsys):
    """Also what is taken of the class images."""
    kind = tmp_path / "kind"
    kind.mkdir()
    Image.new("RGB", (64, 64)).save(kind / "0.png")
    (kind / "1.heic").touch()
    flags = ("--class-images", str(kind), "--class-prompt", "a square", "--dry-run")
    assert command.main(arguments(shared, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr().out
    assert "frames 0–1 of 8" in said and "1 file of other kinds left out (1.heic)" in said


def test_samples_are_of_the_prompts_that_the_record_names(shared, tmp_path):
    """Of others where a tuning goes on with others; none of a tuning that was replaced stays."""
    out, flags = tmp_path / "out", ("--sample-steps", "1", "--sample-prompt")
    assert (
        command.main(arguments(shared, out, *flags, "a red jeep", "--sample-prompt", "a car", "--sample-every", "1"))
        == 0
    )
    before = {p.name: p.read_bytes() for p in (out / "samples").iterdir()}
    assert sorted(before) == [f"{step:05d}-{i}.gif" for step in (1, 2, 3) for i in (0, 1)]
    assert command.main(arguments(shared, out, *flags, "a blue boat on the snow", "--sample-every", "1")) == 0
    assert (out / "samples/00003-0.gif").read_bytes() != before["00003-0.gif"]
    assert not (out / "samples/00003-1.gif").exists() and (out / "samples/00001-1.gif").exists()
    again = ("--sample-every", "1", "--steps", "2", "--seed", "1", "--overwrite")
    assert command.main(arguments(shared, out, *flags, "a car", *again)) == 0
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["00001-0.gif", "00002-0.gif"]


def test_a_tuning_that_is_stopped_while_it_samples_has_its_samples_in_the_end(shared, tmp_path, monkeypatch):
    flags = ("--sample-prompt", "a red jeep", "--sample-steps", "1")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command.main(arguments(shared, whole, *flags)) == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_samples", interrupted)
        assert command.main(arguments(shared, stopped, *flags)) == 130
    # as a kill leaves it that comes while weights are written
    half = stopped / "vae/.diffusion_pytorch_model.bin.4711.part/diffusion_pytorch_model.bin"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    (stopped / "vae/.mine.part").write_text("not fz's")
    assert command.main(arguments(shared, stopped, *flags)) == 0
    of_whole, of_stopped = ({p.name: p.read_bytes() for p in (out / "samples").iterdir()} for out in (whole, stopped))
    assert of_whole and of_whole == of_stopped
    assert not half.parent.exists() and (stopped / "vae/.mine.part").exists()


@pytest.mark.parametrize("name", ["jeep", "man_skate", "swan"])
def test_released_configs_unchanged(shared, tmp_path, name, capsys):
    config = shared / f"fatezero_configs/tune/{name}.yaml"
    flags = [
        "--config",
        str(config),
        "--checkpoint",
        str(shared / "golden/tiny_sd"),
        "--video",
        str(shared / "data/jeep"),
        "--frames",
        "2",
    ]
    settings, notes = parse(flags)
    assert (settings.recipe, settings.rate, settings.steps) == ("fatezero", 1e-5, 1000)
    assert (
        settings.rank == (16 if name == "man_skate" else 160) and settings.dtype == "float16" and settings.seed == 74831
    )
    assert (
        settings.sample_every == settings.save_every == 50 and settings.recompute and len(settings.sample_prompts) >= 3
    )
    assert settings.out == f"results/tuned-{name}"
    assert any("class images" in note for note in notes) == (name != "man_skate")
    assert command.main([*flags, "--size", "64", "--out", str(tmp_path / "out"), "--dry-run", "--device", "cpu"]) == 0
    assert "dry run" in capsys.readouterr().out and not (tmp_path / "out").exists()


def parsed(shared, *assignments, name="man_skate", flags=()):
    sets = [text for assignment in assignments for text in ("--set", assignment)]
    return parse(["--config", str(shared / f"fatezero_configs/tune/{name}.yaml"), "--video", "clip", *sets, *flags])


OTHERWISE = (
    "lr_scheduler=cosine", "train_batch_size=4", "max_grad_norm=0.1", "adam_weight_decay=0", "adam_beta1=0.5",
    "adam_beta2=0.9", "adam_epsilon=1e-4", "use_8bit_adam=true", "prior_preservation=1.0",
    "model_config.SparseCausalAttention_index=[mid]", "model_config.least_sc_channel=640",
    "trainer_pipeline_config.target=mine.trainer",
)  # fmt: skip
AS_FZ_DOES = (
    "lr_scheduler=constant", "lr_warmup_steps=100", "train_batch_size=1", "scale_lr=true", "max_grad_norm=1",
    "adam_weight_decay=1e-2", "adam_beta1=0.9", "adam_beta2=.999", "adam_epsilon=1e-8", "use_8bit_adam=false",
    "prior_preservation=null", "model_config.SparseCausalAttention_index=[-1, first]",
    "model_config.least_sc_channel=0", "dataset_config.stride=1", "enable_xformers=false",
)  # fmt: skip


def test_what_a_config_asks_for_that_fz_does_otherwise_is_said(shared):
    for assignment in OTHERWISE:
        name, _, value = assignment.partition("=")
        (note,) = parsed(shared, assignment)[1]
        assert (
            note.startswith(f"{name}: ")
            and value.strip("[]") in note.replace("T", "t")
            and "counts for nothing" in note
        ), note
    together = parsed(shared, *OTHERWISE, "lr_warmup_steps=100", "scale_lr=true")[1]
    assert len(together) == len(OTHERWISE) + 2
    assert len(parsed(shared, "scale_lr=true", "gradient_accumulation_steps=2")[1]) == 1
    for assignments in (AS_FZ_DOES, *((one,) for one in AS_FZ_DOES)):
        assert parsed(shared, *assignments)[1] == []
    with pytest.raises(FzError, match="adam_beta1: got 'much', expected a number"):
        parsed(shared, "adam_beta1=much")


def test_what_is_said_of_adamw_is_the_trainers():
    from fz.tuning.released import OURS

    of = tuner().optimiser.defaults
    assert of["betas"] == (OURS["adam_beta1"][0], OURS["adam_beta2"][0])
    assert (of["weight_decay"], of["eps"]) == (OURS["adam_weight_decay"][0], OURS["adam_epsilon"][0])
    assert tuning.ANCHORS.entries == tuple(OURS["model_config.SparseCausalAttention_index"][0])


def test_windows_of_a_clip_that_are_not_learned_are_said(shared):
    jeep = ["--video", str(shared / "data/jeep")]
    count = len(list((shared / "data/jeep").iterdir()))
    for stride, more in ((1, []), (count - 7, ["--frames", "7"])):
        (note,) = parsed(shared, f"dataset_config.stride={stride}", flags=[*jeep, "--frames", "2", *more])[1]
        assert note.startswith(f"dataset_config.stride: {stride} makes ") and "the first is learned" in note
    assert parsed(shared, f"dataset_config.stride={count}", flags=[*jeep, "--frames", "2"])[1] == []
    assert parsed(shared, "dataset_config.stride=1", flags=[*jeep, "--frames", "all"])[1] == []


def test_prior_preservation_is_no_weight_of_class_images(shared):
    """In the released trainer it is that of the distance to the untuned UNet, with class images or without."""
    assert parsed(shared, "prior_preservation=0.3")[0].class_weight == 1.0


RECIPES_OF = {
    "both": (("train_temporal_conv=true", "model_config.lora=16"), "fatezero"),
    "a rank that nothing trains": (("train_temporal_conv=false", "model_config.lora=16"), "tune-a-video"),
    "by default": (("train_temporal_conv=null", "model_config.lora=16"), "tune-a-video"),
    "neither": (("train_temporal_conv=null", "model_config.lora=null"), "tune-a-video"),
}


@pytest.mark.parametrize("case", RECIPES_OF)
def test_a_configs_recipe_is_what_the_released_code_trains(shared, case):
    assignments, recipe = RECIPES_OF[case]
    assert parsed(shared, *assignments)[0].recipe == recipe
    rank = 16 if "16" in assignments[1] else 160
    assert parsed(shared, *assignments, flags=["--recipe", "fatezero"])[0].rank == rank


def test_whole_convolutions_over_time_are_refused_unless_a_flag_says_what_else(shared):
    whole = ("train_temporal_conv=true", "model_config.lora=null")
    with pytest.raises(FzError, match=r"train_temporal_conv: got True without model_config.lora.*lora=160"):
        parsed(shared, *whole)
    with pytest.raises(FzError, match="train_temporal_conv: got 'maybe', expected true or false"):
        parsed(shared, "train_temporal_conv=maybe")
    assert parsed(shared, *whole, flags=["--recipe", "tune-a-video"])[0].recipe == "tune-a-video"
    assert parsed(shared, *whole, flags=["--lora-rank", "4"])[0].lora_rank == 4


def test_what_a_config_lacks_is_as_the_released_training_has_it(shared, tmp_path):
    """Its steps and rate; its clip's prompt is the clip's, whatever is edited, and that of class images without one."""
    file = tmp_path / "c.yaml"
    file.write_text("dataset_config: {path: clip, prompt: a jeep}\nediting_config: {source_prompt: a silver jeep}\n")
    settings, _ = parse(["--config", str(file)])
    assert (settings.steps, settings.rate, settings.prompt) == (300, 3e-5, "a jeep")
    assert parse(["--config", str(file), "--lora-rank", "4"])[0].rate is None
    assert parse(["--video", "clip", "--prompt", "a jeep", "--out", "o", "--set", "seed=3"])[0].steps == 100
    (tmp_path / "kind").mkdir()
    kind = ["--set", f"dataset_config.class_data_root={tmp_path / 'kind'}"]
    assert parse(["--config", str(file), *kind])[0].class_prompt == "a jeep"
    prompt = ["--set", "dataset_config.class_data_prompt=a photo of a car"]
    assert parse(["--config", str(file), *prompt])[0].class_prompt is None
    assert parse(["--config", str(file), *prompt, "--class-images", "x"])[0].class_prompt == "a photo of a car"
    gone = ["--set", "dataset_config.class_data_root=gone"]
    assert parse(["--config", str(file), *gone, *prompt, "--class-images", "x"])[1] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "fast"], "expected a number"),
        (["--rate", "3"], "between 0 and 1"),
        (["--recipe", "tune-a-vidoe"], "Did you mean 'tune-a-video'"),
        (["--class-prompt", "a photo of a car"], "expected both"),
        (["--stepz", "3"], "unknown flag --stepz"),
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        (["--prompt", " "], "empty sentence"),
        (["--class-weight", "0.5"], "class-weight: changes nothing by itself, expected --class-images with it"),
        (["--rank", "8"], "rank: changes nothing by itself, expected --recipe fatezero with it"),
        (["--rank", "8", "--lora-rank", "4"], "rank: changes nothing by itself"),
        (["--lora-rank", "4", "--recipe", "fatezero"], "recipe: got 'fatezero' with --lora-rank"),
        (["--sample-every", "5"], "expected --sample-prompt with it"),
        (["--sample-steps", "5"], "expected --sample-prompt with it"),
        (["--guidance", "5"], "expected --sample-prompt with it"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_mistakes_are_answered_in_one_line(shared, tmp_path, capsys, flags, message):
    assert command.main([*arguments(shared, tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "out").exists()


def test_a_flag_counts_with_what_it_needs_from_flags_or_a_yaml(shared, tmp_path):
    base = arguments(shared, tmp_path / "out")
    pairs = (
        "--rank",
        "8",
        "--recipe",
        "fatezero",
        "--sample-prompt",
        "a car",
        "--sample-every",
        "5",
        "--guidance",
        "5",
    )
    settings, _ = parse([*base, *pairs, "--class-images", "x", "--class-prompt", "a car", "--class-weight", "0.5"])
    assert (settings.rank, settings.sample_every, settings.class_weight) == (8, 5, 0.5)
    config = ["--config", str(shared / "fatezero_configs/tune/jeep.yaml")]
    assert parse([*base, *config, "--rank", "8", "--sample-every", "5"])[0].rank == 8
    # what a config says of class images that are not there, and of its recipe, is read all the same
    assert parse([*base, *config, "--lora-rank", "4"])[0].lora_rank == 4


def test_a_folder_of_other_things_is_left_alone(shared, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert command.main(arguments(shared, tmp_path)) == 2
    assert "holds other files" in capsys.readouterr().err


# ---- slow --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_tuning_gives_the_same_weights(shared, tmp_path):
    def run(out):
        flags = arguments(shared, out, "--steps", "30", "--save-every", "3")
        return subprocess.Popen([sys.executable, "-m", "fz.tune", *flags], env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert run(tmp_path / "whole").wait() == 0
    kills = 0
    while kills < 3:
        process, start = run(tmp_path / "killed"), time.monotonic()
        before = (tmp_path / "killed/state.pt").stat().st_mtime_ns if (tmp_path / "killed/state.pt").exists() else 0
        while process.poll() is None and time.monotonic() - start < 300:
            state = tmp_path / "killed/state.pt"
            if state.exists() and state.stat().st_mtime_ns > before:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
        kills += 1
    assert run(tmp_path / "killed").wait() == 0
    whole, killed = (
        torch.load(tmp_path / name / "unet/diffusion_pytorch_model.bin", weights_only=True)
        for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[k], killed[k]) for k in whole)


@pytest.mark.slow
def test_a_step_of_stable_diffusions_shapes_fits_20_gb():
    """8 frames at 128x128, random weights, as `fz.tune` does it, in a process of its own: peak memory, weights
    included.
    """
    code = """
import torch
from fz.tuning import trainer as tuning
from fz.tuning.run import restore
from fz.ddim import Schedule
from fz.memory.machine import peak_memory
from fz.model.unet import UNet, UNetConfig
from fz.tuning.run import predicted
recipe = tuning.RECIPES["fatezero"]
unet = tuning.inflate(UNet(UNetConfig()).to(memory_format=torch.channels_last), recipe)
tuner = tuning.Tuner(unet, recipe, Schedule.from_config({}, 50).alpha_bars, tuning.TrainingSettings(recipe.rate))
assert tuner.step([tuning.Lesson(torch.randn(8, 4, 16, 16), torch.randn(77, 768))]) > 0
needed = predicted(unet, tuner.weights.values(), (8, 3, 128, 128), 8, True) + sum(p.nbytes for p in unet.parameters())
print(peak_memory(torch.device("cpu")) / 1e9, needed / 1e9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    peak, needed = map(float, done.stdout.split())
    assert peak < 20 and 0.8 < needed / peak < 1.1
