"""For the tests of checkpoints: writers of the original (CompVis) layout and of shards, and small changes to files.

The original layout is written by the inverse of the tables in weights/layouts.py; test_parity.py checks those against
diffusers' own.
"""

import json

import torch
from safetensors.torch import save_file

from fz.weights import layouts

UNET_FILE, VAE_FILE, TEXT_FILE = (
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/pytorch_model",
)


def invert(state, table):
    """state with our module names replaced by the original's."""
    assert len(set(table.values())) == len(table), "two original names for one of ours"
    return layouts.rename(state, {ours: theirs for theirs, ours in table.items()}, "test")


def compvis(unet, vae, text, *, levels=4, layers=2, up_attention=(False, True, True, True), text_prefix="text_model."):
    """One flat CompVis state dict from three state dicts in our names. The VAE's attention becomes 1x1 convolutions, as
    there.
    """
    unet, vae = invert(unet, layouts.unet_table(layers, up_attention)), invert(vae, layouts.vae_table(levels, layers))
    state = {layouts.UNET_PREFIX + key: t for key, t in unet.items()} | {
        layouts.VAE_PREFIX + key: t for key, t in vae.items()
    }
    for key, t in state.items():
        if ".mid.attn_1." in key and t.ndim == 2:
            state[key] = t[:, :, None, None]
    state |= {f"{layouts.TEXT_PREFIX}{text_prefix}{key}": t for key, t in text.items()}
    return state


def schedule():
    """The buffers of Stable Diffusion v1's noise schedule that its single files carry."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    return {"betas": betas.float(), "alphas_cumprod": alphas.float(), "sqrt_alphas_cumprod": alphas.sqrt().float()}


def averaged(state, change):
    """The EMA entries of a flat CompVis state dict: each UNet weight changed, under a key without dots."""
    prefix = layouts.UNET_PREFIX
    return {
        "model_ema." + key.removeprefix("model.").replace(".", ""): change(t)
        for key, t in state.items()
        if key.startswith(prefix)
    }


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(state, folder, ending, count=3):
    names = [f"diffusion_pytorch_model-{i:05d}-of-{count:05d}{ending}" for i in range(count)]
    weight_map = {key: names[i % count] for i, key in enumerate(state)}
    for name in names:
        part = {key: state[key] for key in state if weight_map[key] == name}
        (save_file if ending == ".safetensors" else torch.save)(part, folder / name)
    index = folder / f"diffusion_pytorch_model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def drop(fragment):
    return lambda state: {k: t for k, t in state.items() if fragment not in k}
