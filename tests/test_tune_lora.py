"""`fz.tune --lora-rank`: what is trained, that it goes on to the same bits, and that its file is what was learned."""

import copy
import json
import shutil

import pytest
import torch
from PIL import Image
from random_weights import numbers, randomize, relative
from safetensors.torch import load_file

from fz import tune as command
from fz.attention import Plain
from fz.ddim import Schedule
from fz.errors import FzError
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.settings.config import ClipSettings
from fz.tuning import lora, trainer
from fz.tuning.settings import parse
from fz.tuning.trainer import Lesson, TrainingSettings, trained
from fz.weights.changes import Changes
from fz.weights.load import load_checkpoint
from fz.weights.lora import read_lora
from fz.weights.merge import merged
from fz.weights.write import write_lora

SMALL = UNetConfig(
    block_out_channels=(16, 24, 32, 32), heads=(2,) * 4, cross_attention_dim=12, norm_num_groups=4, layers_per_block=1
)
ALPHA_BARS = Schedule.from_config({}, 10).alpha_bars
KINDS = {"to_q", "to_k", "to_v", "0", "proj_in", "proj_out", "proj", "2"}  # to_out.0, ff.net.0.proj, ff.net.2


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, and a loss of 8 fixed draws, which any of its tests can do with."""
    torch.set_num_threads(1)
    monkeypatch.setattr(trainer, "DRAWS", 8)


def small():
    return randomize(UNet(SMALL)).to(memory_format=torch.channels_last)


def lesson(count=6):
    return Lesson(numbers(1, count, 4, 8, 8), numbers(2, count, 77, 12))


def tuner(unet=None, rank=3, **options):
    adapted = lora.adapt(unet or small(), rank)
    return lora.PictureTuner(adapted, lora.RECIPE, ALPHA_BARS, TrainingSettings(1e-2, **options))


def noise(unet, z, text):
    with torch.no_grad():
        return unet(z[:, None], 500, TextContext(text), Plain(lora.OWN))


def test_it_begins_as_the_model_that_it_was_given_and_changes_every_linear_layer():
    unet, x = small(), lesson()
    plain = copy.deepcopy(unet)
    ours = tuner(unet)
    assert torch.equal(noise(ours.unet, x.z, x.embedding), noise(plain, x.z, x.embedding))
    changed = lora.changes(ours.unet)
    assert {name.rpartition(".")[2] for name in changed} == KINDS and all(".attentions." in name for name in changed)
    linear = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and ".attentions." in n]
    assert set(linear) <= set(changed) and all(low.up.shape[1] <= 3 for low in changed.values())
    assert {n.rpartition(".")[2] for n in ours.weights} == {"up", "down"} and len(ours.weights) == 2 * len(changed)


def test_only_the_change_is_trained_and_it_learns():
    ours, x = tuner(), lesson(3)
    before = {k: t.clone() for k, t in ours.unet.state_dict().items()}
    first = ours.fixed_loss(x)
    for _ in range(12):
        ours.step([x])
    assert ours.fixed_loss(x) < 0.98 * first
    differ = {k for k, t in ours.unet.state_dict().items() if not torch.equal(t, before[k])}
    assert differ == set(ours.weights)
    assert set(trained(ours.unet, lora.RECIPE)) == differ


def test_each_picture_has_its_own_caption_and_timestep():
    """A lesson's loss is the mean of its pictures' own, whatever stands beside them."""
    ours, x = tuner(), lesson(4)
    randomize(ours.unet)
    seen = []
    forward = ours.unet.forward
    ours.unet.forward = lambda *given: (seen.append(given[1:3]), forward(*given))[1]
    with torch.no_grad():
        loss = ours.loss(x, 7)
    t, text = seen[0]
    assert len(set(t.tolist())) > 1 and t.shape == (4,)
    order = [next(i for i in range(4) if torch.equal(text.embedding[k], x.embedding[i])) for k in range(4)]
    assert sorted(order) == [0, 1, 2, 3] and loss.isfinite()


def test_each_picture_s_error_has_its_own_weight():
    ours, x = tuner(snr_power=0.5), lesson(4)
    eps, alpha_bar = torch.zeros_like(x.z), torch.tensor([0.9, 0.5, 0.25, 0.01]).view(4, 1, 1, 1)
    errors = x.z.square().mean((1, 2, 3))
    weights = torch.tensor([1 / 3, 1, 3**0.5, 99**0.5])
    torch.testing.assert_close(ours.error(x.z, eps, alpha_bar), (weights * errors).mean())
    torch.testing.assert_close(tuner().error(x.z, eps, alpha_bar), errors.mean())


def test_it_goes_on_to_the_same_bits():
    x, whole = lesson(), tuner(seed=3)
    for _ in range(4):
        whole.step([x])
    half = tuner(seed=3)
    half.step([x])
    half.step([x])
    state = copy.deepcopy(half.state())
    again = tuner(seed=3)
    again.restore(state)
    again.step([x])
    again.step([x])
    for name, weight in whole.weights.items():
        assert torch.equal(weight, again.weights[name])


def test_the_file_is_what_was_learned(tmp_path):
    unet = small()
    plain = {k: t.clone() for k, t in unet.state_dict().items()}
    ours, x = tuner(unet), lesson()
    randomize(ours.unet)
    with torch.no_grad():
        base = {k.replace(".parametrizations.weight.original", ".weight"): t for k, t in ours.unet.state_dict().items()}
    made = {name: (low.up, low.down) for name, low in lora.changes(ours.unet).items()}
    write_lora(tmp_path / "lora.safetensors", made)
    state = {k: t for k, t in base.items() if ".parametrizations." not in k}
    assert state.keys() == plain.keys()
    same = UNet(SMALL)
    same.load_state_dict(merged(state, "unet", [read_lora(tmp_path / "lora.safetensors")]))
    assert relative(noise(same, x.z, x.embedding), noise(ours.unet, x.z, x.embedding)) < 1e-5
    shapes = {k: t.shape for k, t in load_file(tmp_path / "lora.safetensors").items()}
    name = "lora_unet_mid_block_attentions_0_"
    assert shapes[f"{name}proj_in.lora_down.weight"] == (3, 32, 1, 1) and shapes[f"{name}proj_in.alpha"] == ()
    assert shapes[f"{name}transformer_blocks_0_attn2_to_k.lora_down.weight"] == (3, 12)


def test_captions(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.txt").write_text("stencil of\n a car\n")
    (tmp_path / "2.txt").write_text(" \n")
    assert lora.captions(ClipSettings(str(tmp_path)), (0, 1, 2), "a dog") == ["a dog", "stencil of a car", "a dog"]
    assert lora.captions(ClipSettings(str(tmp_path)), (1,), "a dog") == ["stencil of a car"]
    (tmp_path / "0.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FzError, match="0.txt is no caption"):
        lora.captions(ClipSettings(str(tmp_path)), (0,), "a dog")


def test_the_command_writes_a_file_that_runs_take(models, root, tmp_path, capsys):
    """Two runs to four steps make what one makes; the same command finds it done."""
    base = ["--checkpoint", str(models / "tiny_sd"), "--video", str(models / "clips/car128"), "--prompt", "a red car",
            "--size", "64", "--frames", "3", "--lora-rank", "2", "--device", "cpu", "--rate", "0.01"]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert command.main([*base, "--steps", "3", "--out", str(one)]) == 0
    said = capsys.readouterr().out
    assert f"LoRA in {one / 'lora.safetensors'}" in said
    for steps in ("1", "3"):
        assert command.main([*base, "--steps", steps, "--out", str(two)]) == 0
    assert (one / "lora.safetensors").read_bytes() == (two / "lora.safetensors").read_bytes()
    names = {p.relative_to(one).as_posix() for p in one.rglob("*") if p.is_file()}
    assert names >= {"lora.safetensors", "tuning.json", "loss.csv", "loss.png"} and not (one / "unet").exists()
    record = json.loads((one / "tuning.json").read_text())
    assert record["lora_rank"] == 2 and record["tuned"] > 0
    changes = Changes(((str(one / "lora.safetensors"), 1.0),))
    plain, changed = (load_checkpoint(models / "tiny_sd", changes=c).unet for c in (Changes(), changes))
    assert any(not torch.equal(t, changed.state_dict()[k]) for k, t in plain.state_dict().items())
    assert command.main([*base, "--steps", "3", "--out", str(one), "--lora-rank", "4"]) == 2
    assert "another lora_rank (2 there, 4 now)" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--crop", "2,0,0,0"]], ids=["whole", "cropped"])
def test_pictures_of_different_sizes_are_learned(more, models, tmp_path, capsys):
    """The clip's of a LoRA, and those of its kind in any tuning; a tuning's clip is still one clip."""
    (tmp_path / "mix").mkdir()
    for k, size in enumerate([(96, 64), (64, 200), (70, 70)]):
        Image.new("RGB", size, (80 * k, 40, 90)).save(tmp_path / "mix" / f"{k}.png")
    mix = str(tmp_path / "mix")
    base = ["--checkpoint", str(models / "tiny_sd"), "--prompt", "a red car", "--size", "64", "--steps", "1",
            "--device", "cpu", *more]  # fmt: skip
    lora_of_mix = ["--video", mix, "--frames", "all", "--lora-rank", "2"]
    kinds = ["--class-images", mix, "--class-prompt", "a car"]
    assert command.main([*base, *lora_of_mix, "--out", str(tmp_path / "lora")]) == 0
    clip = ["--video", str(models / "clips/car128"), "--frames", "2"]
    assert command.main([*base, *clip, *kinds, "--out", str(tmp_path / "kinds")]) == 0
    capsys.readouterr()
    assert command.main([*base, "--video", mix, "--frames", "all", "--out", str(tmp_path / "one")]) == 2
    assert "differ in size: 0.png is 96x64, 1.png is 64x200" in capsys.readouterr().err


def test_a_lora_learns_all_pictures_and_a_tuning_eight_frames(models, tmp_path, capsys):
    """Unless it is told how many; a video's frames are told."""
    (tmp_path / "many").mkdir()
    for k in range(11):
        Image.new("RGB", (64, 64), (20 * k, 40, 90)).save(tmp_path / f"many/{k}.png")
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "many/3.png", tmp_path / "one/0.png")
    movie = tmp_path / "clip.gif"
    Image.new("RGB", (64, 64)).save(movie, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")] * 3)
    base = ["--prompt", "a red car", "--out", str(tmp_path / "out"), "--video"]

    def frames(path, *more):
        return parse([*base, str(tmp_path / path), *more])[0].clip.frames

    for path in ("many", "one", "many/3.png", "many/*.png", "many/[1-3].png"):
        assert frames(path, "--lora-rank", "2") is None and frames(path) == 8
    assert frames("many", "--lora-rank", "2", "--frames", "5") == 5
    assert frames("clip.gif", "--lora-rank", "2") == frames("gone", "--lora-rank", "2") == 8
    (tmp_path / "c.yaml").write_text("dataset_config: {n_sample_frame: 5}")
    assert frames("many", "--lora-rank", "2", "--config", str(tmp_path / "c.yaml")) == 5

    flags = ["--checkpoint", str(models / "tiny_sd"), "--size", "64", "--device", "cpu", "--steps", "1"]
    flags += ["--lora-rank", "2", "--sample-prompt", "a car", "--sample-steps", "1"]
    assert command.main([*base, str(tmp_path / "many"), *flags]) == 0
    assert json.loads((tmp_path / "out/tuning.json").read_text())["clip"]["frames"] is None
    # what is sampled of many pictures is bounded
    with Image.open(tmp_path / "out/samples/00001-0.gif") as sampled:
        assert sampled.n_frames == 8
    assert command.main([*base, str(tmp_path / "many"), *flags, "--frames", "5", "--out", str(tmp_path / "five")]) == 0
    assert "frames 0–4 of 11" in capsys.readouterr().out


def test_the_clip_s_crop_is_not_the_class_images(models):
    argv = ["--video", "clip", "--prompt", "a car", "--crop", "2,0,0,0", "--size", "64", "--frames", "3", "--out", "o"]
    kinds, _ = parse([*argv, "--class-images", str(models / "clips/car128"), "--class-prompt", "a car"])
    assert kinds.every_class_image() == ClipSettings(str(models / "clips/car128"), frames=None, size=64)
    with pytest.raises(FzError, match="class_images: got none"):
        parse(argv)[0].every_class_image()


def test_a_rank_that_cannot_be(tmp_path, capsys):
    assert command.main(["--lora-rank", "0", "--out", str(tmp_path / "x")]) == 2
    assert "lora-rank: got '0', expected a whole number of at least 1" in capsys.readouterr().err
