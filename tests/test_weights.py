"""Checkpoints: every layout gives the same model to the bit, and everything that is no Stable Diffusion v1 is refused
in one line.
"""

import json
import os
import pickle
import shutil
import sys
import types

import pytest
import torch
from checkpoints import TEXT_FILE, UNET_FILE, VAE_FILE, averaged, compvis, drop, edit_json, invert, shard
from safetensors.torch import load_file, save_file

from fz.errors import FzError
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.weights import inferred, layouts
from fz.weights.load import load_checkpoint
from fz.weights.read import read_weights
from fz.weights.source import text_names
from fz.weights.tokenizer import find_tokenizer

pytest_plugins = ["golden_model"]


def parts(checkpoint):
    return {"unet": checkpoint.unet, "vae": checkpoint.vae, "text": checkpoint.text.model}


def assert_same(a, b):
    for name, model in parts(a).items():
        other = parts(b)[name].state_dict()
        assert model.state_dict().keys() == other.keys()
        unequal = [key for key, t in model.state_dict().items() if not torch.equal(t, other[key])]
        assert not unequal, f"{name}: {unequal[:3]}"


# ---- every layout, the same model --------------------------------------------------------------------------


def test_folder(tiny, models):
    """Models come ready: float32, CPU, eval, no gradients, every weight the file's own."""
    for model in parts(tiny).values():
        assert not model.training
        for p in (*model.parameters(), *model.buffers()):
            assert p.device.type == "cpu" and not p.requires_grad
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
    source = load_file(models / "tiny_sd" / f"{UNET_FILE}.safetensors")
    assert all(torch.equal(t, source[key]) for key, t in tiny.unet.state_dict().items())
    assert tiny.scheduler["beta_start"] == 0.00085 and tiny.scheduler["set_alpha_to_one"] is False
    assert not tiny.tuned and tiny.unet.config.temporal is None
    expected = (
        "tiny_sd: diffusers folder, UNet 5.5 M (fp32 safetensors), VAE 0.4 M (fp32 bin), text encoder 1.6 M "
        "(fp32 bin), untuned"
    )
    assert tiny.report == expected


WRITERS = {
    "ckpt, nested": ("model.ckpt", lambda s, f: torch.save({"state_dict": s, "epoch": 3, "global_step": 10}, f)),
    "ckpt, bare": ("model.ckpt", torch.save),
    "ckpt of PyTorch before 1.6": (
        "model.ckpt",
        lambda s, f: torch.save({"state_dict": s}, f, _use_new_zipfile_serialization=False),
    ),
    "safetensors": ("model.safetensors", save_file),
    "safetensors called ckpt": ("model.ckpt", save_file),
}


@pytest.mark.parametrize("form", WRITERS)
def test_single_file_equals_folder(form, tiny, flat, single, tmp_path):
    name, write = WRITERS[form]
    write(flat, tmp_path / name)
    loaded = single(tmp_path / name)
    assert_same(tiny, loaded)
    assert loaded.scheduler == tiny.scheduler
    assert loaded.report.startswith(f"{name}: CompVis single file, UNet 5.5 M (fp32 ") and loaded.report.endswith(
        "untuned"
    )


def test_output_is_bit_equal(tiny, flat, single, tmp_path):
    """Not only the weights but what is computed from them, though files keep them at other addresses."""
    save_file(flat, tmp_path / "model.safetensors")
    torch.save({"state_dict": flat}, tmp_path / "model.ckpt")
    frames = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 49407, (1, 77), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want_z, want_text = tiny.vae.encode(frames), tiny.text.model(ids).last_hidden_state
        for name in ("model.safetensors", "model.ckpt"):
            loaded = single(tmp_path / name)
            assert torch.equal(loaded.vae.encode(frames), want_z)
            assert torch.equal(loaded.text.model(ids).last_hidden_state, want_text)


def test_text_encoder_without_prefix(tiny, flat, single, tmp_path):
    """Files written with transformers since 5.6 have no text_model. in their keys."""
    save_file(
        {key.replace("transformer.text_model.", "transformer."): t for key, t in flat.items()},
        tmp_path / "model.safetensors",
    )
    assert_same(tiny, single(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("part", [UNET_FILE, VAE_FILE, TEXT_FILE])
def test_fp16_variant(part, tiny, folder):
    """fp16 variants are read where there is nothing better, and widened exactly."""
    name, stem = part.split("/")
    whole = next(folder.glob(f"{part}*"))
    state = read_weights(whole).tensors
    stem = "model" if name == "text_encoder" else stem
    save_file(
        {k: t.half() if t.is_floating_point() else t for k, t in state.items()},
        folder / name / f"{stem}.fp16.safetensors",
    )
    assert "fp16" not in load_checkpoint(folder).report, "full precision goes before fp16"
    whole.unlink()
    loaded = load_checkpoint(folder)
    assert "(fp16 safetensors)" in loaded.report.replace("fp16/int64", "fp16")
    model, want = (
        {"unet": m.unet, "vae": m.vae, "text_encoder": m.text.model}[name].state_dict() for m in (loaded, tiny)
    )
    assert all(torch.equal(t, want[key].half().float()) for key, t in model.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("ending", ["safetensors", "safetensors and more", "ckpt"])
def test_eight_bits_are_widened(dtype, ending, flat, single, tmp_path):
    low = {k: t.to(dtype) if t.is_floating_point() else t for k, t in flat.items()}
    file = tmp_path / f"low.{ending.split()[0]}"
    save_file(low, file) if file.suffix == ".safetensors" else torch.save(low, file)
    if ending.endswith("more"):
        file.write_bytes(file.read_bytes() + b"more")
    wide = {k: t.float() for k, t in low.items() if t.is_floating_point() and k != "alphas_cumprod"}
    save_file(wide, tmp_path / "wide.safetensors")
    loaded = single(file)
    assert_same(single(tmp_path / "wide.safetensors"), loaded)
    assert str(dtype).removeprefix("torch.") in loaded.report


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_another_schedule_in_eight_bits_is_still_another(dtype, flat, single, tmp_path):
    low = flat | {"alphas_cumprod": torch.linspace(1, 0, 1000).to(dtype)}
    save_file(low, tmp_path / "low.safetensors")
    with pytest.raises(FzError, match="another noise schedule"):
        single(tmp_path / "low.safetensors")


def test_two_numbers_a_byte_are_refused(flat, single, tmp_path):
    low = {k: t.half().view(torch.float4_e2m1fn_x2) if k.endswith("out.2.bias") else t for k, t in flat.items()}
    save_file(low, tmp_path / "low.safetensors")
    torch.save(low, tmp_path / "low.ckpt")
    for name in ("low.safetensors", "low.ckpt"):
        with pytest.raises(FzError, match=f"{name}: has numbers of float4_e2m1fn_x2, two a byte") as error:
            single(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards(ending, tiny, folder):
    file = folder / f"{UNET_FILE}.safetensors"
    state = load_file(file)
    file.unlink()
    shards = shard(state, folder / "unet", ending)
    loaded = load_checkpoint(folder)
    assert_same(tiny, loaded)
    assert f"sharded {ending[1:]}" in loaded.report

    (folder / "unet" / shards[1]).unlink()
    with pytest.raises(FzError, match="no such file, but .* lists it"):
        load_checkpoint(folder)


def test_safetensors_before_bin(tiny, folder):
    torch.save({}, folder / f"{UNET_FILE}.bin")
    assert_same(tiny, load_checkpoint(folder))


def test_new_vae_and_text_names(tiny, folder):
    """Folders saved today: to_q … in the VAE, no text_model., no position_ids."""
    for name, model in (("vae/diffusion_pytorch_model", tiny.vae), ("text_encoder/model", tiny.text.model)):
        (next((folder / name.split("/")[0]).glob("*.bin"))).unlink()
        save_file({k: t.clone() for k, t in model.state_dict().items()}, folder / f"{name}.safetensors")
    assert_same(tiny, load_checkpoint(folder))


# ---- EMA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ema", "factor", "said"), [("auto", 2, "EMA weights"), ("ema", 2, "EMA weights"), ("plain", 1, "plain weights")]
)
def test_ema(ema, factor, said, tiny, flat, single, tmp_path):
    extra = averaged(flat, lambda t: 2 * t) | {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5),
    }
    save_file(flat | extra, tmp_path / "full.safetensors")
    loaded = single(tmp_path / "full.safetensors", ema=ema)
    assert f"CompVis single file, {said}, " in loaded.report
    want = tiny.unet.state_dict()
    assert all(torch.equal(t, factor * want[key]) for key, t in loaded.unet.state_dict().items())


def test_ema_refusals(flat, single, tmp_path):
    save_file(flat, tmp_path / "plain.safetensors")
    with pytest.raises(FzError, match=r"no EMA weights.*Choose 'plain' or 'auto'"):
        single(tmp_path / "plain.safetensors", ema="ema")
    with pytest.raises(FzError, match="ema: got 'both', expected one of auto, ema, plain"):
        single(tmp_path / "plain.safetensors", ema="both")
    extra = averaged(flat, torch.clone)
    del extra["model_ema.diffusion_modelinput_blocks00weight"]
    save_file(flat | extra, tmp_path / "half.safetensors")
    with pytest.raises(FzError, match=r"EMA weights do not match .*diffusion_modelinput_blocks00weight"):
        single(tmp_path / "half.safetensors")
    single(tmp_path / "half.safetensors", ema="plain")


def test_non_ema_variant(tiny, folder):
    state = load_file(folder / f"{UNET_FILE}.safetensors")
    save_file({k: 2 * t for k, t in state.items()}, folder / f"{UNET_FILE}.non_ema.safetensors")
    for ema in ("auto", "ema"):
        averaged = load_checkpoint(folder, ema=ema)
        assert_same(tiny, averaged)
        assert ": diffusers folder, EMA weights, UNet" in averaged.report
    loaded = load_checkpoint(folder, ema="plain")
    plain = loaded.unet.state_dict()
    assert all(torch.equal(plain[key], 2 * t) for key, t in state.items())
    assert ": diffusers folder, plain weights, UNet" in loaded.report
    (folder / f"{UNET_FILE}.safetensors").unlink()
    for ema in ("auto", "plain"):
        assert load_checkpoint(folder, ema=ema).report == loaded.report
    with pytest.raises(
        FzError, match=r"^ema: got 'ema', but .*unet has plain weights alone\. Choose 'plain' or 'auto'"
    ):
        load_checkpoint(folder, ema="ema")


@pytest.mark.parametrize("ema", ["ema", "plain"])
def test_a_folder_that_does_not_say_which_weights_it_has(ema, folder):
    said = rf"^ema: got '{ema}', but .*unet has one set of weights.*non_ema.safetensors beside them; choose 'auto'"
    with pytest.raises(FzError, match=said):
        load_checkpoint(folder, ema=ema)


def test_a_snapshot_whose_plain_weights_were_not_fetched(tiny, folder, tmp_path):
    snapshot = tmp_path / "models--owner--sd/snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    files = tmp_path / "models--owner--sd/.fz-files" / f"{snapshot.name}.json"
    files.parent.mkdir()
    files.write_text(json.dumps([f"{UNET_FILE}.safetensors", f"{UNET_FILE}.non_ema.safetensors"]))
    loaded = load_checkpoint(snapshot, ema="ema")
    assert_same(tiny, loaded)
    assert loaded.report.startswith("owner/sd: diffusers folder, EMA weights, ")


@pytest.mark.parametrize(("ema", "said"), [("auto", "EMA"), ("ema", "EMA"), ("plain", "plain")])
def test_the_set_of_a_separate_vae(ema, said, flat, single, other_vae, tmp_path):
    """'ema' asks for it where there are two, of the checkpoint and of a VAE, each."""
    save_file(flat | averaged(flat, torch.clone), tmp_path / "full.safetensors")
    torch.save({"state_dict": vae_with_ema(original(other_vae))}, tmp_path / "two.pt")
    save_file(other_vae, tmp_path / "one.safetensors")
    two = single(tmp_path / "full.safetensors", vae=tmp_path / "two.pt", ema=ema)
    factor = 3 if said == "plain" else 1
    assert torch.allclose(two.vae.decoder.conv_in.weight * factor, other_vae["decoder.conv_in.weight"])
    assert f"VAE of two.pt 0.4 M (fp32 pt, {said} weights)" in two.report
    one = single(tmp_path / "full.safetensors", vae=tmp_path / "one.safetensors", ema=ema)
    assert "VAE of one.safetensors 0.4 M (fp32 safetensors)," in one.report


# ---- pickles -----------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch):
    """Makes a class of a package that is not installed, for as long as a file is written."""

    def make(module, name, **body):
        parts = module.split(".")
        for i in range(len(parts)):
            dotted = ".".join(parts[: i + 1])
            monkeypatch.setitem(sys.modules, dotted, sys.modules.get(dotted) or types.ModuleType(dotted))
        cls = type(name, (), {"__module__": module, **body})
        monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
        return cls

    return make


def boom(*_):
    raise AssertionError("code of a checkpoint ran")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_lightning_checkpoint(zipped, tiny, flat, single, foreign, monkeypatch, tmp_path):
    """Callbacks, settings and numpy numbers beside the weights are stood in for; none of their code runs."""
    import collections

    import numpy as np

    callback = foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    config = foreign("omegaconf.dictconfig", "DictConfig")
    settings = config()
    settings.content = collections.defaultdict(dict, {"lr": 1e-4})
    value = {
        "state_dict": flat,
        "epoch": 1,
        "callbacks": {callback: {"monitor": "val/loss", "best": np.float64(0.25), "kind": callback()}},
        "hyper_parameters": settings,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "shape": np.zeros(3)}],
        "pytorch-lightning_version": "1.4.2",
    }
    torch.save(value, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    for cls in (callback, config):
        monkeypatch.setattr(cls, "__setstate__", boom, raising=False)
        monkeypatch.setattr(cls, "__new__", boom)
    assert_same(tiny, single(tmp_path / "model.ckpt"))
    with pytest.raises(pickle.UnpicklingError):  # the stand-ins are gone again
        torch.load(tmp_path / "model.ckpt", weights_only=True)


class Bomb:
    """A pickle that would make a file, were it believed."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (os.system, ("touch {}",), "asks for posix.system"),
        (eval, ("open('{}', 'w')",), "asks for builtins.eval"),
        (getattr, (os, "{}"), "asks for builtins.getattr"),
        (shutil.rmtree, ("{}",), "asks for shutil.rmtree"),
        (torch.hub.load, ("{}", "x"), "refused by PyTorch's safe reader"),
    ],
    ids=["system", "eval", "getattr", "rmtree", "hub"],
)
def test_pickle_bomb_is_refused(function, args, said, zipped, flat, single, tmp_path):
    mark = tmp_path / "mark"
    if function is getattr:
        args = (1, "real")
    bomb = Bomb(function, *(a.format(mark) if isinstance(a, str) else a for a in args))
    torch.save({"state_dict": flat, "callbacks": bomb}, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FzError, match=said) as error:
        single(tmp_path / "model.ckpt")
    assert not mark.exists() and "\n" not in str(error.value) and ".safetensors" in str(error.value)


def test_function_of_an_inert_package_does_not_run(flat, single, tmp_path):
    """numpy's own functions are stood in for too, so even one that evaluates text does nothing."""
    from numpy.testing import rundocs

    torch.save({"state_dict": flat, "callbacks": Bomb(rundocs, str(tmp_path / "absent.py"))}, tmp_path / "model.ckpt")
    single(tmp_path / "model.ckpt")


# ---- tuned checkpoints -------------------------------------------------------------------------------------


def test_fatezero_tuned(models):
    tuned = load_checkpoint(models / "tiny_tuned")
    temporal = tuned.unet.config.temporal
    assert tuned.tuned and temporal.attention and temporal.conv == "low_rank"
    assert dict(temporal.ranks) == {4: 2, 32: 16, 64: 32, 96: 48}
    source = torch.load(models / "tiny_tuned" / f"{UNET_FILE}.bin", weights_only=True)
    assert tuned.unet.state_dict().keys() == source.keys()
    assert all(torch.equal(t, source[key]) for key, t in tuned.unet.state_dict().items())
    assert "tuned (temporal attention, low-rank temporal convolutions of rank 2, 16, 32, 48)" in tuned.report


def rewrite_unet(folder, change):
    file = folder / f"{UNET_FILE}.bin"
    state = change(torch.load(file, weights_only=True))
    torch.save(state, file)
    return state


def test_tune_a_video(tuned_folder, models):
    """attn_temp and norm_temp, no temporal convolutions."""
    names = {"attn_temporal": "attn_temp", "norm_temporal": "norm_temp"}
    rewrite_unet(
        tuned_folder, lambda s: layouts.rename_parts({k: t for k, t in s.items() if "conv_temporal" not in k}, names)
    )
    blocks = [f"{b}Block3D" for b in ("CrossAttnDown", "CrossAttnDown", "CrossAttnDown", "Down")]
    edit_json(
        tuned_folder / "unet" / "config.json",
        _class_name="UNet3DConditionModel",
        down_block_types=blocks,
        mid_block_type="UNetMidBlock3DCrossAttn",
    )
    tuned = load_checkpoint(tuned_folder)
    assert tuned.unet.config.temporal.attention and tuned.unet.config.temporal.conv is None
    assert tuned.report.endswith("tuned (temporal attention)")
    want = load_checkpoint(models / "tiny_tuned").unet.state_dict()
    assert all(torch.equal(t, want[key]) for key, t in tuned.unet.state_dict().items())


def test_full_temporal_convolutions(tuned_folder):
    def full(state):
        new = {k: t for k, t in state.items() if "conv_temporal" not in k}
        for key in state:
            if key.endswith("conv_temporal.down.weight"):
                name, width = key.removesuffix("down.weight"), state[key].shape[1]
                new |= {f"{name}weight": torch.randn(width, width, 3), f"{name}bias": torch.randn(width)}
        return new

    state = rewrite_unet(tuned_folder, full)
    tuned = load_checkpoint(tuned_folder)
    assert tuned.unet.config.temporal.conv == "full"
    assert all(torch.equal(t, state[key]) for key, t in tuned.unet.state_dict().items())


def test_tuned_config_of_the_released_trainer(tuned_folder):
    """Its saved config may hold the trainer's own fields; the rank comes from the weights all the same."""
    edit_json(
        tuned_folder / "unet" / "config.json", lora=160, SparseCausalAttention_index=["mid"], least_sc_channel=1280
    )
    assert dict(load_checkpoint(tuned_folder).unet.config.temporal.ranks)[96] == 48


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            drop("mid_block.attentions.0.transformer_blocks.0.attn_temporal"),
            "unet: 5 keys missing .*mid_block.*attn_temporal",
        ),
        (drop("conv_out.conv_temporal"), "no temporal convolutions of width 4"),
        (
            lambda s: s | {"conv_in.conv_temporal.weight": torch.zeros(32, 32, 3)},
            "full and low-rank temporal convolutions",
        ),
        (lambda s: s | {"conv_in.conv_temporal.down.weight": torch.zeros(8, 32, 3)}, "several ranks"),
    ],
    ids=["half the attention", "no last convolution", "both kinds", "two ranks"],
)
def test_tuned_refusals(change, said, tuned_folder):
    rewrite_unet(tuned_folder, change)
    with pytest.raises(FzError, match=said):
        load_checkpoint(tuned_folder)


# ---- a VAE of its own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_vae(tiny):
    return {key: 3 * t for key, t in tiny.vae.state_dict().items()}


def old_names(state):
    return layouts.rename(state, {ours: old for old, ours in layouts.OLD_VAE_TABLE.items()}, "test")


def original(state):
    conv = {k: t[:, :, None, None].clone() if ".attentions.0.to_" in k and t.ndim == 2 else t for k, t in state.items()}
    return invert(conv, layouts.vae_table(4, 2))


VAE_FILES = {
    "diffusers": lambda s, f: save_file(s, f),
    "old diffusers": lambda s, f: save_file(old_names(s), f),
    "original": lambda s, f: save_file(original(s), f),
    "original, prefixed": lambda s, f: save_file({f"first_stage_model.{k}": t for k, t in original(s).items()}, f),
    "pickle, nested, with its loss": lambda s, f: torch.save(
        {"state_dict": original(s) | {"loss.logvar": torch.zeros(())}}, f
    ),
    "pickle with EMA": lambda s, f: torch.save({"state_dict": vae_with_ema(original(s))}, f),
}


def vae_with_ema(state):
    return {k: t / 3 for k, t in state.items()} | {"model_ema." + k.replace(".", ""): t for k, t in state.items()}


@pytest.mark.parametrize("form", VAE_FILES)
@pytest.mark.parametrize("whole", ["folder", "single file"])
def test_separate_vae(form, whole, models, tiny, flat, other_vae, single, tmp_path):
    VAE_FILES[form](other_vae, tmp_path / "my-vae.pt")
    if whole == "folder":
        loaded = load_checkpoint(models / "tiny_sd", vae=tmp_path / "my-vae.pt")
    else:
        save_file({k: t for k, t in flat.items() if "first_stage_model" not in k}, tmp_path / "model.safetensors")
        loaded = single(tmp_path / "model.safetensors", vae=tmp_path / "my-vae.pt")
    assert all(torch.equal(t, other_vae[key]) for key, t in loaded.vae.state_dict().items())
    assert "VAE of my-vae.pt 0.4 M" in loaded.report
    assert torch.equal(loaded.unet.conv_in.weight, tiny.unet.conv_in.weight)


@pytest.mark.parametrize("inner", ["", "vae"])
def test_separate_vae_folder(inner, models, other_vae, tmp_path):
    folder = tmp_path / "own" / inner
    folder.mkdir(parents=True)
    shutil.copyfile(models / "tiny_sd" / "vae" / "config.json", folder / "config.json")
    save_file(other_vae, folder / "diffusion_pytorch_model.safetensors")
    loaded = load_checkpoint(models / "tiny_sd", vae=tmp_path / "own")
    assert all(torch.equal(t, other_vae[key]) for key, t in loaded.vae.state_dict().items())


# ---- the tokenizer -----------------------------------------------------------------------------------------


def test_tokenizer_choice(models, flat, single, folder, tmp_path, monkeypatch):
    """--tokenizer, then the checkpoint's, then --model-config's, then the Hub's cache; else it is said what to pass."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub_home"))
    save_file(flat, tmp_path / "model.safetensors")
    shutil.move(folder / "tokenizer", tmp_path / "words")
    with pytest.raises(
        FzError, match=r"openai/clip-vit-large-patch14 is not in the Hub cache .*hub_home.*Pass --tokenizer DIR"
    ):
        single(tmp_path / "model.safetensors", model_config=folder)
    loaded = single(tmp_path / "model.safetensors", model_config=folder, tokenizer=tmp_path / "words")
    known = json.loads((tmp_path / "words" / "vocab.json").read_text())
    expected = [known[token] for token in ("<|startoftext|>", "a</w>", "jeep</w>", "<|endoftext|>")]
    assert list(loaded.text.tokens("a jeep").ids[:4]) == expected
    load_checkpoint(folder, tokenizer=models / "tiny_sd")

    snapshot = tmp_path / "hub_home" / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots" / "abc"
    shutil.copytree(tmp_path / "words", snapshot)
    single(tmp_path / "model.safetensors", model_config=folder)
    assert find_tokenizer(None, folder) == snapshot
    assert find_tokenizer(None, folder, models / "tiny_sd") == models / "tiny_sd" / "tokenizer"
    with pytest.raises(FzError, match="has no vocab.json and merges.txt"):
        load_checkpoint(folder, tokenizer=tmp_path)


def test_damaged_tokenizer(folder):
    (folder / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(FzError, match="tokenizer: .* cannot be read"):
        load_checkpoint(folder)


# ---- shapes ------------------------------------------------------------------------------------------------


def sd_v1_state():
    """The state dicts of Stable Diffusion v1.4's UNet and VAE, without memory."""
    with torch.device("meta"):
        return UNet(UNetConfig()).state_dict(), VAE(VAEConfig()).state_dict()


def test_tables_cover_stable_diffusion_v1():
    """Every module has an original name, one to one, and the config that is read back from the shapes is v1's."""
    unet, vae = sd_v1_state()
    for state, table in ((unet, layouts.unet_table(2, (False, True, True, True))), (vae, layouts.vae_table(4, 2))):
        theirs = invert(state, table)
        assert not {k for k in theirs if k.startswith(("down_blocks", "up_blocks", "mid_block", "encoder.mid_block"))}
        assert layouts.rename(theirs, table, "test").keys() == state.keys()
    config = inferred.infer_unet(invert(unet, layouts.unet_table(2, (False, True, True, True))), "sd.ckpt")
    assert UNetConfig.from_json(config) == UNetConfig()
    assert VAEConfig.from_json(inferred.infer_vae(vae, "sd.ckpt")) == VAEConfig()


@pytest.mark.parametrize(
    ("widths", "layers"),
    [((64, 128), 1), ((64, 128, 128), 3), ((320, 640, 1280, 1280, 1280), 2)],
    ids=["2x1", "3x3", "5x2"],
)
def test_other_shapes_are_inferred(widths, layers):
    """Any SD-v1-shaped UNet: other depths, widths and layers come back from the weights' shapes."""
    n = len(widths)
    attention = tuple(i < n - 1 for i in range(n))
    config = UNetConfig(widths, layers, (8,) * n, 96, down_attention=attention, up_attention=attention[::-1])
    with torch.device("meta"):
        state = UNet(config).state_dict()
    theirs = invert(state, layouts.unet_table(layers, config.up_attention))
    assert UNetConfig.from_json(inferred.infer_unet(theirs, "x.ckpt")) == config


def test_text_config_is_inferred():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        state = text_names(CLIPTextModel(config).state_dict())
    got = inferred.infer_text(state, "sd.ckpt")
    assert {name: getattr(config, name) for name in got} == got


def test_single_file_without_model_config(single, tmp_path, models):
    """A small model of v1's kind (8 heads, 32 groups, text heads of 64) needs no config: 2 levels, 1 layer."""
    config = UNetConfig((64, 128), 1, (8, 8), 64, down_attention=(True, False), up_attention=(False, True))
    vae_config = VAEConfig((32, 64), 1)
    from transformers import CLIPTextConfig, CLIPTextModel

    text_config = CLIPTextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1, vocab_size=49408
    )
    unet, vae = UNet(config), VAE(vae_config)
    text = text_names(CLIPTextModel(text_config).state_dict())
    flat = compvis(unet.state_dict(), vae.state_dict(), text, levels=2, layers=1, up_attention=(False, True))
    torch.save({"state_dict": flat}, tmp_path / "small.ckpt")
    loaded = load_checkpoint(tmp_path / "small.ckpt", tokenizer=models / "tiny_sd" / "tokenizer")
    assert loaded.unet.config == config and loaded.vae.config == vae_config
    assert loaded.text.model.config.num_attention_heads == 1 and loaded.text.model.config.hidden_act == "quick_gelu"
    for model, source in ((loaded.unet, unet), (loaded.vae, vae)):
        assert all(torch.equal(t, source.state_dict()[key]) for key, t in model.state_dict().items())
