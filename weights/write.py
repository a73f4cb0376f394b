"""Writes a tuned model as a folder that `fz.run` and the released code can read: diffusers' layout of that time,
weights in .bin files; and a LoRA as a file of kohya's names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fz.clips.media import write_json
from fz.model.unet import UNetConfig
from fz.model.vae import VAEConfig
from fz.prompts.text import LENGTH
from fz.prompts.tokenizer import ClipTokenizer
from fz.tensors import write_pt, write_safetensors
from fz.weights.layouts import OLD_VAE_TABLE
from fz.weights.load import TEXT_FIELDS, Checkpoint
from fz.weights.tokenizer import OF_ADDED, ROLES

VERSION = "0.11.1"  # of diffusers, which the released code was written for
INDEX = {
    "_class_name": "P2pDDIMSpatioTemporalPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["models", "UNetPseudo3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_tuned(folder: Path, checkpoint: Checkpoint) -> None:
    """All of the checkpoint, its UNet tuned. Each file is written whole; float32."""
    vae_names = {ours: old for old, ours in OLD_VAE_TABLE.items()}
    text = checkpoint.text.model
    write_json(folder / "model_index.json", INDEX)
    write_json(
        folder / "scheduler/scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": VERSION,
            "clip_sample": False,
            "skip_prk_steps": True,
            "trained_betas": None,
            **checkpoint.scheduler,
        },
    )
    write_json(folder / "unet/config.json", unet_json(checkpoint.unet.config))
    write_weights(folder / "unet/diffusion_pytorch_model.bin", checkpoint.unet.state_dict())
    write_json(folder / "vae/config.json", vae_json(checkpoint.vae.config))
    vae = {renamed(name, vae_names): tensor for name, tensor in checkpoint.vae.state_dict().items()}
    write_weights(folder / "vae/diffusion_pytorch_model.bin", vae)
    fields = {name: getattr(text.config, name) for name in TEXT_FIELDS}
    write_json(
        folder / "text_encoder/config.json",
        {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **fields},
    )
    state = {f"text_model.{name}": tensor for name, tensor in text.state_dict().items()}
    # older versions of transformers expect the positions' numbers
    state["text_model.embeddings.position_ids"] = torch.arange(text.config.max_position_embeddings)[None]
    write_weights(folder / "text_encoder/pytorch_model.bin", state)
    write_tokenizer(checkpoint.text.tokenizer, folder / "tokenizer")


def write_tokenizer(tokenizer: ClipTokenizer, folder: Path) -> None:
    """vocab.json, merges.txt and what single tokens are for, as diffusers and transformers read them."""
    tokenizer.write_vocabulary(folder)
    roles = {**ROLES, "pad_token": tokenizer.token(tokenizer.padding)}
    write_json(folder / "special_tokens_map.json", roles)
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **roles}
    added = {str(number): {name: getattr(t, name) for name in OF_ADDED} for number, t in tokenizer.added().items()}
    write_json(folder / "tokenizer_config.json", said | {"added_tokens_decoder": added})


def renamed(name: str, names: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{names.get(module, module)}.{kind}"


def unet_json(config: UNetConfig) -> dict:
    """As the released code's UNet has it; what it does not say of the temporal layers, the weights' shapes do."""
    down, up = (
        [f"{'CrossAttn' if attends else ''}{side}BlockPseudo3D" for attends in levels]
        for side, levels in (("Down", config.down_attention), ("Up", config.up_attention))
    )
    return {
        "_class_name": "UNetPseudo3DConditionModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": config.heads[0] if len(set(config.heads)) == 1 else list(config.heads),
        "block_out_channels": list(config.block_out_channels),
        "center_input_sample": False,
        "class_embed_type": None,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": config.freq_shift,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlockPseudo3DCrossAttn",
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_num_groups,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": "default",
        "sample_size": 64,
        "up_block_types": up,
        "upcast_attention": False,
        "use_linear_projection": False,
    }


def vae_json(config: VAEConfig) -> dict:
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.out_channels,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def write_lora(path: Path, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """(up (O, r), down (r, I)) of the UNet's layers, by kohya's names; alpha is each layer's rank, so that strength 1
    is what was learned. Whole or not at all.
    """
    state = {}
    for layer, (up, down) in layers.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        # convolutions of 1x1, in the checkpoint as in kohya's files
        ends = (1, 1) if layer.endswith(("proj_in", "proj_out")) else ()
        for half, t in (("up", up), ("down", down)):
            state[f"{name}.lora_{half}.weight"] = t.detach().cpu().float().reshape(*t.shape, *ends)
        state[f"{name}.alpha"] = torch.tensor(float(len(down)))
    # one entry: safetensors writes several in any order, and the same training is to give the same bytes
    write_safetensors(path, state, {"ss_base_model_version": "sd_v1"})


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    write_pt(path, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
