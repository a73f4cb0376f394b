"""LoRA: layouts of files against diffusers' and PEFT's merging, convolutions, ranks and alphas, and what is refused.

Both sides share one tiny Stable Diffusion; `slow` has v1.4's own shapes.
"""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from random_weights import numbers, randomize, relative
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import fz
from fz.errors import FzError
from fz.memory.inversions import model_digest
from fz.model.layers import TextContext
from fz.settings.checks import files_with, strengths
from fz.weights import layouts
from fz.weights.changes import Changes
from fz.weights.load import load_checkpoint
from fz.weights.lora import read_lora
from fz.weights.merge import merged, places_of
from fz.weights.source import from_folder

pytest_plugins = ["golden_model"]
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
PAIRS = torch.zeros(96, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FULL = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", *ATTENTION)
CONVOLUTIONS = (*FULL, "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")


@pytest.fixture(scope="module")
def source(models):
    return from_folder(models / "tiny_sd", None, None, "auto")


def layers_of(state, ends):
    """{layer: its weight's shape} of the layers whose names end so."""
    return {
        key.removesuffix(".weight"): tuple(t.shape)
        for key, t in state.items()
        if key.endswith(".weight") and t.ndim in (2, 4) and key.removesuffix(".weight").endswith(ends)
    }


def random_lora(source, unet, text=TEXT, ranks=(4,), alphas=(None,), seed=0):
    """{(part, layer): (up, down, alpha)}; ranks and alphas by turns."""
    out = {}
    parts = (("unet", source.unet.weights.tensors, unet), ("text", source.text.weights.tensors, text))
    turns = itertools.cycle(zip(itertools.cycle(ranks), alphas))
    for part, state, ends in parts:
        for layer, (width, *rest) in layers_of(state, ends).items() if ends else ():
            rank, alpha = next(turns)
            seed += 2
            down = numbers(seed, rank, *rest) / (numbers(seed, *rest).numel() ** 0.5)
            up = numbers(seed + 1, width, rank, *([1, 1] if len(rest) == 3 else [])) / rank
            out[part, layer] = (up, down, alpha)
    return out


def kohya(lora, block_names=None):
    state = {}
    for (part, layer), (up, down, alpha) in lora.items():
        name = (block_names or {}).get(layer, layer).replace(".", "_")
        name = f"lora_{'te_text_model' if part == 'text' else 'unet'}_{name}"
        state |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def peft(lora, prefixes=("unet.", "text_encoder.text_model."), halves=("lora_B", "lora_A")):
    state = {}
    for (part, layer), (up, down, _) in lora.items():
        name = prefixes[part == "text"] + layer
        state |= {f"{name}.{halves[0]}.weight": up, f"{name}.{halves[1]}.weight": down}
    return state


def old_diffusers(lora):
    """As diffusers wrote it before PEFT."""
    state = {}
    for (part, layer), (up, down, _) in lora.items():
        if part == "unet":
            owner, _, kind = layer.removesuffix(".0").rpartition(".")
            name = f"unet.{owner}.processor.{kind}_lora"
        else:
            name = f"text_encoder.text_model.{layer}.lora_linear_layer"
        state |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    return state


def first_diffusers(lora):
    """As diffusers first wrote the text encoder's attention: by the UNet's names."""
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    state = {}
    for key, t in old_diffusers(lora).items():
        for theirs, first in names.items():
            key = key.replace(f".self_attn.{theirs}.lora_linear_layer.", f".self_attn.{first}_lora.")
        state[key] = t
    return state


# of parity: a block of each kind, since PEFT takes its time over every layer; `slow` has them all
SOME = ("down_blocks.1.", "mid_block.", "up_blocks.2.", "encoder.")
LAYOUTS = {
    "kohya, any rank": lambda s: kohya(some(random_lora(s, FULL, ranks=(1, 3, 7), alphas=(0.6,)))),
    "LoCon": lambda s: kohya(some(random_lora(s, CONVOLUTIONS, ranks=(4,), alphas=(2.0,)))),
    "diffusers before PEFT": lambda s: old_diffusers(some(random_lora(s, ATTENTION, TEXT[:4]))),
    "diffusers' first names": lambda s: first_diffusers(some(random_lora(s, ATTENTION, TEXT[:4]))),
    "PEFT's names": lambda s: peft(some(random_lora(s, FULL))),
}


def some(lora):
    return {place: halves for place, halves in lora.items() if place[1].startswith(SOME)}


def pipeline(folder, unet=None, text=None):
    diffusers = pytest.importorskip("diffusers", reason="parity is with diffusers: pip install diffusers")
    pytest.importorskip("peft", reason="diffusers merges by PEFT: pip install peft")
    import transformers

    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    unet = unet or diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=text or CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def compare(ours, pipe, size=8):
    """Merged weights to 1e-6 and outputs to 1e-4."""
    theirs = dict(pipe.unet.state_dict())
    for name, t in ours.unet.state_dict().items():
        assert (t - theirs[name]).abs().max() <= 1e-6 * max(1, t.abs().max()), name
    expected = pipe.text_encoder.state_dict()
    for name, t in ours.text.model.state_dict().items():
        other = expected.get(name, expected.get(f"text_model.{name}"))
        assert (t - other).abs().max() <= 1e-6 * max(1, t.abs().max()), name
    ids = torch.tensor([ours.text.tokens("a red car").ids])
    with torch.no_grad():
        context = pipe.text_encoder(ids)[0]
        assert relative(ours.text.encode(["a red car"]), context) < 1e-4
        z = numbers(5, 1, 1, 4, size, size)
        eps = pipe.unet(z[0], 301, context).sample
        ours.unet.clip_norm = False
        assert relative(ours.unet(z, 301, TextContext(context))[0], eps) < 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_merged_as_diffusers_merges_it(name, models, source, tmp_path):
    save_file({k: t.contiguous() for k, t in LAYOUTS[name](source).items()}, tmp_path / "style.safetensors")
    pipe = pipeline(models / "tiny_sd")
    plain = {k: t.clone() for k, t in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    ours = load_checkpoint(models / "tiny_sd", changes=Changes(((str(tmp_path / "style.safetensors"), 0.7),)))
    compare(ours, pipe)
    assert any(not torch.equal(t, plain[k]) for k, t in ours.unet.state_dict().items())
    assert "LoRA style.safetensors × 0.7" in ours.report


def test_several_and_what_peft_itself_saves(models, source, tmp_path):
    """An adapter that PEFT made, saved by diffusers with its alpha in the file's description, over a kohya file."""
    pipe = pipeline(models / "tiny_sd")
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    save_file(kohya(some(random_lora(source, FULL))), tmp_path / "a.safetensors")
    targets = r"mid_block.*(to_q|to_k|conv1)"
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    pipe.unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        weight_name="b.safetensors",
        unet_lora_adapter_metadata=config.to_dict(),
    )
    pipe = pipeline(models / "tiny_sd")
    pipe.load_lora_weights(str(tmp_path), weight_name="a.safetensors", adapter_name="a")
    pipe.load_lora_weights(str(tmp_path), weight_name="b.safetensors", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, -1.2])
    pipe.fuse_lora(adapter_names=["a", "b"])
    pipe.unload_lora_weights()
    given = ((str(tmp_path / "a.safetensors"), 0.5), (str(tmp_path / "b.safetensors"), -1.2))
    compare(load_checkpoint(models / "tiny_sd", changes=Changes(given)), pipe)


def test_an_adapter_folder_of_pefts(models, source, tmp_path):
    lora = random_lora(source, ATTENTION, ())
    names = ("base_model.model.", "")
    save_file(peft(lora, names), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 10, "r": 4, "use_rslora": True}))
    got = read_lora(tmp_path / "adapter_model.safetensors")
    save_file(kohya({k: (up, down, 10 * 4**0.5) for k, (up, down, _) in lora.items()}), tmp_path / "same.safetensors")
    expected = read_lora(tmp_path / "same.safetensors")
    assert got.layers.keys() == expected.layers.keys()
    assert all(torch.equal(layer.delta(), expected.layers[place].delta()) for place, layer in got.layers.items())


@pytest.mark.slow
def test_stable_diffusions_own_shapes(models, tmp_path):
    """v1.4's UNet with random weights, and LoCon's convolutions of it."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    unet = randomize(unet.to_empty(device="cpu"))
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    text = randomize(CLIPTextModel(text))
    folder = tmp_path / "sd"
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    for part in ("vae", "scheduler", "tokenizer"):
        (folder / part).symlink_to((models / "tiny_sd" / part).resolve())
    source = from_folder(folder, None, None, "auto")
    save_file(kohya(random_lora(source, CONVOLUTIONS, ranks=(8,), alphas=(4.0,))), tmp_path / "style.safetensors")
    ours = load_checkpoint(folder, changes=Changes(((str(tmp_path / "style.safetensors"), 0.8),)))
    pipe = pipeline(folder, unet, text)
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    pipe.fuse_lora(lora_scale=0.8)
    pipe.unload_lora_weights()
    compare(ours, pipe, size=16)


def test_each_layer_has_an_alpha_of_its_own(source, tmp_path):
    """diffusers 0.42 reads them, and leaves those of attention out."""
    lora = random_lora(source, CONVOLUTIONS, ranks=(1, 4, 7), alphas=(1.0, 2.5, None, -3.0))
    save_file(kohya(lora), tmp_path / "lora.safetensors")
    loras = [read_lora(tmp_path / "lora.safetensors", 0.6)]
    for part, weights in (("unet", source.unet.weights.tensors), ("text", source.text.weights.tensors)):
        out = merged(weights, part, loras)
        for (of, layer), (up, down, alpha) in lora.items():
            if of == part:
                rank, before = len(down), weights[f"{layer}.weight"].double()
                scale = 0.6 * (alpha if alpha is not None else rank) / rank
                change = scale * (up.double().flatten(1) @ down.double().flatten(1))
                assert relative(out[f"{layer}.weight"].double() - before, change.reshape(before.shape)) < 1e-4
                assert (out[f"{layer}.weight"] - before - change.reshape(before.shape)).abs().max() < 1e-6


# ---- without diffusers ---------------------------------------------------------------------------------------


def test_all_layouts_say_the_same(source, tmp_path):
    """One LoRA in every layout that can hold it, and by the original layout's numbers of blocks."""
    lora = random_lora(source, ATTENTION)
    table = {ours: theirs for theirs, ours in layouts.unet_table(2, (False, True, True, True)).items()}
    blocks = {}
    for part, layer in lora:
        module = next(
            (m for m in sorted(table, key=len, reverse=True) if part == "unet" and layer.startswith(m + ".")), None
        )
        blocks[layer] = table[module] + layer[len(module) :] if module else layer
    assert any(name.startswith("input_blocks.1.1.") for name in blocks.values())
    states = {
        "kohya": kohya(lora),
        "blocks": kohya(lora, blocks),
        "diffusers": old_diffusers(lora),
        "peft": peft(lora),
        "peft, by adapter": peft(lora, halves=("lora_B.default", "lora_A.default")),
        "dots": peft(lora, halves=("lora.up", "lora.down")),
        "comfyui": peft(lora, ("diffusion_model.", "text_encoders.clip_l.transformer.text_model.")),
    }
    results = {}
    for name, state in states.items():
        torch.save(state, tmp_path / "lora.pt")
        loras = [read_lora(tmp_path / "lora.pt")]
        results[name] = merged(source.unet.weights.tensors, "unet", loras) | {
            f"text.{k}": t for k, t in merged(source.text.weights.tensors, "text", loras).items()
        }
    for name, state in results.items():
        assert state.keys() == results["kohya"].keys()
        assert all(torch.equal(t, results["kohya"][k]) for k, t in state.items()), name


def test_a_middle_is_a_convolution_between(source, tmp_path):
    key = "down_blocks.1.resnets.0.conv1"
    weight = source.unet.weights.tensors[f"{key}.weight"]
    up, mid, down = numbers(1, weight.shape[0], 3, 1, 1), numbers(2, 3, 2, 3, 3), numbers(3, 2, weight.shape[1], 1, 1)
    name = f"lora_unet_{key.replace('.', '_')}"
    state = {f"{name}.lora_{half}.weight": t for half, t in (("up", up), ("mid", mid), ("down", down))}
    save_file(state | {f"{name}.alpha": torch.tensor(3.0)}, tmp_path / "lora.safetensors")
    out = merged(source.unet.weights.tensors, "unet", [read_lora(tmp_path / "lora.safetensors", 0.5)])
    change = out[f"{key}.weight"].double() - weight.double()
    x = numbers(4, 1, weight.shape[1], 5, 5).double()
    expected = F.conv2d(F.conv2d(F.conv2d(x, down.double()), mid.double(), padding=1), up.double())
    assert relative(F.conv2d(x, change, padding=1), 0.5 * 3.0 / 2 * expected) < 1e-5


def test_a_tuned_checkpoint_and_half_precision(models, source, tmp_path):
    lora = {k: (up.half(), down.half(), alpha) for k, (up, down, alpha) in random_lora(source, ATTENTION).items()}
    save_file(kohya(lora), tmp_path / "lora.safetensors")
    file = str(tmp_path / "lora.safetensors")
    plain, changed = (load_checkpoint(models / "tiny_tuned", changes=Changes(c)) for c in ((), ((file, 1.0),)))
    assert plain.tuned and changed.tuned
    before, after = plain.unet.state_dict(), changed.unet.state_dict()
    differ = {k for k in before if not torch.equal(before[k], after[k])}
    assert differ == {f"{layer}.weight" for part, layer in lora if part == "unet"}
    key = next(iter(differ))
    up, down, _ = lora["unet", key.removesuffix(".weight")]
    assert torch.equal(after[key], before[key] + 1.0 * (up.float() @ down.float()))


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_eight_bits_are_widened(dtype, source, tmp_path):
    state = kohya(some(random_lora(source, ATTENTION, alphas=(2.0,))))
    low = {k: t.to(dtype) for k, t in state.items()}
    save_file(low, tmp_path / "low.safetensors")
    save_file({k: t.float() for k, t in low.items()}, tmp_path / "wide.safetensors")
    got, expected = (read_lora(tmp_path / f"{name}.safetensors").layers for name in ("low", "wide"))
    assert got.keys() == expected.keys()
    assert all(torch.equal(layer.delta(), expected[place].delta()) for place, layer in got.items())


def test_strength_zero_is_no_change_and_others_are_in_proportion(source, tmp_path):
    save_file(kohya(random_lora(source, ATTENTION)), tmp_path / "lora.safetensors")
    file = str(tmp_path / "lora.safetensors")
    weights = source.unet.weights.tensors
    made = {s: merged(weights, "unet", [read_lora(file, s)]) for s in (0.0, 0.5, 1.0)}
    assert all(torch.equal(t, weights[k].float()) for k, t in made[0.0].items())
    key = next(k for k in weights if k.endswith("attn1.to_q.weight"))
    assert relative(made[1.0][key] - weights[key], 2 * (made[0.5][key] - weights[key])) < 1e-5


def test_an_editors_lora(models, source, tmp_path):
    save_file(kohya(random_lora(source, ATTENTION)), tmp_path / "lora.safetensors")
    file, folder = tmp_path / "lora.safetensors", str(models / "tiny_sd")
    ways = [[file], [(file, 1)], (file, 1.0), {str(file): 1.0}, str(file), f"{file}"]
    assert {files_with("lora", way, (int, float))[0][0] for way in ways} == {str(file)}
    assert {strengths(way) for way in ways} == {((str(file), 1.0),)}
    unet = fz.load(folder, device="cpu", lora=[(file, 0.5)]).checkpoint.unet
    expected = load_checkpoint(folder, changes=Changes(((str(file), 0.5),))).unet
    assert model_digest(unet) == model_digest(expected) != model_digest(load_checkpoint(folder).unet)
    with pytest.raises(FzError, match="lora: got 3000 for"):
        fz.load(folder, lora=[(file, 3000)])
    with pytest.raises(FzError, match="lora: got 7, expected files"):
        fz.load(folder, lora=7)


def test_layers_that_clip_skip_leaves_out(models, source, tmp_path):
    lora = random_lora(source, (), TEXT)
    save_file(kohya(lora), tmp_path / "lora.safetensors")
    given = ((str(tmp_path / "lora.safetensors"), 1.0),)
    whole = load_checkpoint(models / "tiny_sd", changes=Changes(given)).text.model
    short = load_checkpoint(models / "tiny_sd", changes=Changes(given, clip_skip=2)).text.model
    assert short.config.num_hidden_layers == whole.config.num_hidden_layers - 1
    state = whole.state_dict()
    assert all(torch.equal(t, state[k]) for k, t in short.state_dict().items())
    beyond = {(p, n.replace("layers.1.", "layers.11.")): v for (p, n), v in lora.items()}
    save_file(kohya(beyond), tmp_path / "lora.safetensors")
    load_checkpoint(models / "tiny_sd", changes=Changes(given))


# ---- what is refused -----------------------------------------------------------------------------------------

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
V2 = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def low(name=Q, up=(96, 4), down=(4, 96), **more):
    return {f"{name}.lora_up.weight": numbers(1, *up), f"{name}.lora_down.weight": numbers(2, *down), **more}


def without(state, end):
    return {k: t for k, t in state.items() if not k.endswith(end)}


def spoiled(value, dtype=torch.float32):
    state = low()
    state[f"{Q}.lora_up.weight"] = torch.full((96, 4), value, dtype=dtype)
    return state


STATES = {
    "LoHa": (lambda: {f"{Q}.hada_w1_a": numbers(1, 4, 4), **low()}, "is a LoHa"),
    "LoKr": (lambda: {f"{Q}.lokr_w1": numbers(1, 4, 4), f"{Q}.lokr_w2": numbers(1, 4, 4)}, "is a LoKr"),
    "DoRA": (lambda: low(**{f"{Q}.dora_scale": numbers(1, 96, 1)}), "is a DoRA"),
    "DoRA of PEFT's": (lambda: low(**{"unet.x.lora_magnitude_vector": numbers(1, 96)}), "is a DoRA"),
    "OFT": (lambda: {f"{Q}.oft_blocks": numbers(1, 4, 4)}, "is an OFT"),
    "full difference": (lambda: {f"{Q}.diff": numbers(1, 96, 96)}, "full differences"),
    "XL by its second encoder": (lambda: low("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "Stable Diffusion XL"),
    "XL by its text's width": (lambda: low(V2, (96, 4), (4, 2048)), "is for Stable Diffusion XL"),
    "2 by its text's width": (lambda: low(V2, (96, 4), (4, 1024)), "is for Stable Diffusion 2"),
    "Flux": (lambda: low("transformer.single_transformer_blocks.0.attn.to_q"), "Flux"),
    "Flux of PEFT's": (lambda: low("base_model.model.transformer.single_transformer_blocks.0.attn.to_q"), "Flux"),
    "XL by ComfyUI's names": (
        lambda: low("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1"),
        "Stable Diffusion XL",
    ),
    "3 by ComfyUI's names": (
        lambda: low("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"),
        "Stable Diffusion 3",
    ),
    "a checkpoint": (lambda: {"model.diffusion_model.out.2.bias": numbers(1, 4)}, "whole checkpoint.*--checkpoint"),
    "an embedding": (lambda: {"emb_params": numbers(1, 4, 768)}, "textual inversion. Pass it with --embedding"),
    "a ControlNet": (lambda: {"control_model.zero_convs.0.0.weight": numbers(1, 4, 4)}, "a ControlNet"),
    "something else": (lambda: {"weight": numbers(1, 4)}, "no LoRA .it has weight"),
    "keys that are strange": (lambda: low(**{"cow.weight": numbers(1, 4)}), "1 keys that are no LoRA's .cow.weight"),
    "no up": (lambda: without(low(), "lora_up.weight"), "has no up for mid_block"),
    "no down": (lambda: without(low(), "lora_down.weight"), "has no down for mid_block"),
    "alpha alone": (lambda: {f"{Q}.alpha": torch.tensor(1.0)}, "has no up and no down"),
    "two ranks": (lambda: low(up=(96, 3)), "do not fit .up 96×3, down 4×96"),
    "a vector": (lambda: low(up=(96,)), "the up of .* is 96 float32"),
    "rank 0": (lambda: low(up=(96, 0), down=(0, 96)), "is 96×0"),
    "whole numbers": (lambda: spoiled(1, torch.int64), "is 96×4 int64"),
    "NaN": (lambda: spoiled(float("nan")), "has NaN or infinity"),
    "NaN in 8 bits": (lambda: spoiled(float("nan"), torch.float8_e4m3fn), "has NaN or infinity"),
    "two numbers a byte": (lambda: low(**{f"{Q}.lora_up.weight": PAIRS}), "numbers of float4_e2m1fn_x2, two a byte"),
    "alphas": (lambda: low(**{f"{Q}.alpha": numbers(1, 3)}), "alpha is 3 of nan, expected one number"),
    "alpha without end": (lambda: low(**{f"{Q}.alpha": torch.tensor(float("inf"))}), "alpha is a number of inf"),
    "twice": (lambda: low(**{f"unet.{Q[10:]}.lora_A.weight": numbers(1, 4, 96)}), "has the down of .* twice"),
    "a wide up": (lambda: low(up=(96, 4, 3, 3), down=(4, 96, 1, 1)), "do not fit"),
    "nothing": (dict, "holds nothing"),
}


@pytest.mark.parametrize("case", STATES)
def test_malformed(case, tmp_path):
    """Before a model is read: there is none."""
    made, expected = STATES[case]
    save_file(made(), tmp_path / "bad.safetensors")
    with pytest.raises(FzError, match=expected) as error:
        load_checkpoint("no/checkpoint/here", changes=Changes(((str(tmp_path / "bad.safetensors"), 1.0),)))
    assert str(error.value).startswith("lora: ") and "\n" not in str(error.value) and len(str(error.value)) < 400


FILES = {
    "absent": (None, "does not exist"),
    "empty": (b"", "is empty"),
    "a web page": (b"<html>login</html>", "HTML page"),
    "text": (b"a LoRA", "text file"),
    "cut": (b"\x40\0\0\0\0\0\0\0{", "cut short"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_none(case, tmp_path):
    content, expected = FILES[case]
    if content is not None:
        (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(FzError, match=expected) as error:
        load_checkpoint("no/checkpoint/here", changes=Changes(((str(tmp_path / "bad.safetensors"), 1.0),)))
    assert str(error.value).startswith("lora: ") and "\n" not in str(error.value)


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_pickle_that_would_run_code(tmp_path, capsys):
    torch.save({"x.lora_up.weight": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(FzError, match="lora: .*builtins.print.*Refused, since it could run code"):
        read_lora(tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""


def test_pickles_with_more_than_tensors(tmp_path):
    bad = (([1], "holds list"), ({"a": 3}, "no tensor under 'a'"), ({"string_to_param": {}}, "--embedding"))
    for content, expected in bad:
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(FzError, match=f"^lora: .*{expected}"):
            read_lora(tmp_path / "bad.pt")
    torch.save({"state_dict": low(**{f"{Q}.alpha": 2})}, tmp_path / "good.pt")
    (layer,) = read_lora(tmp_path / "good.pt").layers.values()
    assert layer.alpha == 2 and layer.rank == 4


def test_a_description_that_tells_another_model(tmp_path):
    for base, model in (("sdxl_base_v1-0", "Stable Diffusion XL"), ("sd_v2_v", "Stable Diffusion 2")):
        save_file(low(), tmp_path / "l.safetensors", metadata={"ss_base_model_version": base})
        with pytest.raises(FzError, match=f"is for {model}"):
            read_lora(tmp_path / "l.safetensors")
    save_file(peft({("unet", "x.to_q"): (numbers(1, 4, 2), numbers(2, 2, 4), None)}), tmp_path / "l.safetensors",
              metadata={"lora_adapter_metadata": "[1"})  # fmt: skip
    with pytest.raises(FzError, match="is no JSON object"):
        read_lora(tmp_path / "l.safetensors")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (low(up=(32, 4)), "its change of mid_block.* is 32×96, the layer 96×96"),
        (low(Q.replace("blocks_0", "blocks_9")), "changes 1 layers that this UNet has not"),
        (low("lora_te_text_model_encoder_layers_0_mlp_fc9"), "layers that this text encoder has not"),
    ],
)
def test_for_another_model(state, expected, models, tmp_path):
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(FzError, match=expected):
        load_checkpoint(models / "tiny_sd", changes=Changes(((str(tmp_path / "other.safetensors"), 1.0),)))


def test_every_layer_has_one_place(source):
    places = places_of(source.unet.weights.tensors, "unet")
    assert "mid_block_attentions_0_transformer_blocks_0_attn1_to_q" in places and "middle_block_1_proj_in" in places
    assert set(places.values()) == {
        k for k, t in source.unet.weights.tensors.items() if k.endswith(".weight") and t.ndim in (2, 4)
    }
