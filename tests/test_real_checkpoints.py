"""Stable Diffusion v1.4's own shapes with random weights, through every layout: the same models to the bit, in bounded
memory (slow).

Writes files of 4 GB, one layout at a time, under pytest's temporary folder. `test_weights.py` does the same quickly on
a tiny model.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import compvis, schedule, shard
from random_weights import numbers, randomize
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.weights.load import TEXT_FIELDS, load_checkpoint
from fz.weights.source import text_names

pytestmark = pytest.mark.slow

SD_UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "layers_per_block": 2,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 4,
    "layers_per_block": 2,
}
SD_TEXT = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
)
IDS = torch.randint(0, 49406, (1, 77), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    """UNet, VAE and text encoder whose float32 weights are half precision's, so that fp16 files hold them too."""
    with torch.device("meta"):
        models = {"unet": UNet(UNetConfig()), "vae": VAE(VAEConfig())}
    models = {name: m.to_empty(device="cpu") for name, m in models.items()} | {"text": CLIPTextModel(SD_TEXT)}
    for i, m in enumerate(models.values()):
        for p in randomize(m, seed=i).parameters():
            p.copy_(p.half())
    return models


@pytest.fixture(scope="module")
def expected(model):
    return outputs(model)


@torch.no_grad()
def outputs(model):
    """What the three models compute: equal weights at other addresses must not differ in the last bit."""
    pictures, z, text = numbers(1, 1, 3, 64, 64), numbers(2, 1, 2, 4, 16, 16), numbers(3, 1, 77, 768)
    return {
        "unet": model["unet"](z, 541, TextContext(text)),
        "encoder": model["vae"].encode(pictures),
        "decoder": model["vae"].decode(z[0]),
        "text": model["text"](IDS).last_hidden_state,
    }


def flat(model, dtype=torch.float32):
    states = (model["unet"].state_dict(), model["vae"].state_dict(), text_names(model["text"].state_dict()))
    state = {k: t.to(dtype).contiguous() for k, t in compvis(*states).items()} | schedule()
    return state | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def ckpt(model, path, dtype=torch.float32, **options):
    torch.save({"state_dict": flat(model, dtype), "global_step": 470000}, path / "sd-v1-4.ckpt", **options)
    return path / "sd-v1-4.ckpt"


def safetensors(model, path, dtype=torch.float32):
    save_file(flat(model, dtype), path / "sd-v1-4.safetensors")
    return path / "sd-v1-4.safetensors"


def full_ema(model, path):
    """As sd-v1-4-full-ema: the plain weights are others."""
    state = flat(model, torch.float16)
    for key in [k for k in state if k.startswith("model.diffusion_model.")]:
        state["model_ema." + key.removeprefix("model.").replace(".", "")] = state[key]
        state[key] = torch.zeros_like(state[key])
    torch.save({"state_dict": state}, path / "full-ema.ckpt")
    return path / "full-ema.ckpt"


def diffusers_folder(model, path, dtype=torch.float32, ending=".safetensors", sharded=False):
    text = {name: getattr(SD_TEXT, name) for name in TEXT_FIELDS} | {"model_type": "clip_text_model"}
    parts = {
        "unet": (SD_UNET, model["unet"].state_dict(), "diffusion_pytorch_model"),
        "vae": (SD_VAE, model["vae"].state_dict(), "diffusion_pytorch_model"),
        "text_encoder": (text, model["text"].state_dict(), "pytorch_model" if ending == ".bin" else "model"),
    }
    for name, (config, state, stem) in parts.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(config))
        state = {k: t.to(dtype) for k, t in state.items()}
        if sharded and name == "unet":
            shard(state, path / name, ending)
        else:
            write = save_file if ending == ".safetensors" else torch.save
            write(state, path / name / f"{stem}{'.fp16' if dtype == torch.float16 else ''}{ending}")
    return path


LAYOUTS = {
    "ckpt": ckpt,
    "ckpt of PyTorch before 1.6": lambda m, p: ckpt(m, p, torch.float16, _use_new_zipfile_serialization=False),
    "ckpt with EMA": full_ema,
    "safetensors": safetensors,
    "safetensors, fp16": lambda m, p: safetensors(m, p, torch.float16),
    "folder": diffusers_folder,
    "folder, fp16 bin": lambda m, p: diffusers_folder(m, p, torch.float16, ".bin"),
    "folder, sharded": lambda m, p: diffusers_folder(m, p, sharded=True),
}
UNMAPPED = ("ckpt of PyTorch before 1.6",)


LOAD = """
import sys, threading
from pathlib import Path
from fz.weights.load import load_checkpoint

def anonymous():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0])

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

before = peak = anonymous()
done = threading.Event()
thread = threading.Thread(target=watch)
thread.start()
checkpoint = load_checkpoint(sys.argv[1], tokenizer=sys.argv[2])
done.set()
thread.join()
print(peak - before, anonymous() - before)
"""


def memory_of_loading(file, tokenizer):
    """Bytes that a process of its own holds beside mapped files: at most while loading, and after it."""
    out = subprocess.run(
        [sys.executable, "-c", LOAD, str(file), str(tokenizer)], capture_output=True, text=True, check=True
    ).stdout
    return [int(n) for n in out.split()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout, model, expected, golden, tmp_path, record_property):
    path = tmp_path / "model"
    path.mkdir()
    file = LAYOUTS[layout](model, path)
    checkpoint = load_checkpoint(file, tokenizer=golden / "tiny_sd" / "tokenizer")
    loaded = {"unet": checkpoint.unet, "vae": checkpoint.vae, "text": checkpoint.text.model}
    for name, m in loaded.items():
        want = model[name].state_dict()
        assert m.state_dict().keys() == want.keys()
        assert all(t.dtype == torch.float32 and torch.equal(t, want[key]) for key, t in m.state_dict().items()), name
    for name, out in outputs(loaded).items():
        assert torch.equal(out, expected[name]), name
    record_property("report", checkpoint.report)
    assert (
        "UNet 859.5 M" in checkpoint.report
        and "VAE 83.7 M" in checkpoint.report
        and "text encoder 123.1 M" in checkpoint.report
    )
    if Path("/proc/self/status").exists():
        size = sum(4 * p.numel() for m in loaded.values() for p in m.parameters())
        peak, after = (n / size for n in memory_of_loading(file, golden / "tiny_sd" / "tokenizer"))
        record_property("memory", f"{peak:.2f} of the float32 weights at most, {after:.2f} after")
        # a pickle of PyTorch before 1.6 cannot be mapped: its half precision weights are in memory beside ours
        assert after < 1.1 and peak < (1.6 if layout in UNMAPPED else 1.1)
    for f in path.rglob("*"):
        if f.is_file():
            f.unlink()  # not kept among pytest's last three folders
