"""Which ControlNet files can be read, and how? A diffusers folder, or a single file in diffusers' or the original (ldm)
layout, to a `fz.model.control.ControlNet` for Stable Diffusion v1.

All that a file can have wrong is found before any other model is read; whether it fits the checkpoint, when that is
there.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fz.errors import FzError
from fz.model.control import ControlConfig, ControlNet
from fz.model.unet import UNetConfig
from fz.weights import architecture as arch
from fz.weights import layouts
from fz.weights.hub import located
from fz.weights.inferred import count, shape
from fz.weights.layouts import some, under
from fz.weights.load import fill
from fz.weights.needed import OF_CONTROLNET, beside
from fz.weights.read import read_json, read_weights
from fz.weights.source import Part
from fz.weights.texts import refuse_gone

EXPECTED = "Expected a ControlNet of Stable Diffusion v1."
# what a ControlNet's config says beside a UNet's
FIELDS = {
    "conditioning_channels": (3,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}
# Some key contains this -> what the file is
OTHERS = (
    ("add_embedding.", "a ControlNet of Stable Diffusion XL"),
    ("label_emb.", "a ControlNet of Stable Diffusion XL"),
    ("task_embedding", "a ControlNet for several kinds of control (union)"),
    ("difference", "a ControlNet stored as its difference from a UNet; convert it"),
    ("lllite", "a ControlLLLite"),
    ("lora_controlnet", "a Control-LoRA"),
    ("output_blocks.", "a UNet"),
    ("up_blocks.", "a UNet"),
    ("adapter.", "a T2I-Adapter"),
    ("body.0.", "a T2I-Adapter"),
)


def load_control(path: str | Path) -> ControlNet:
    """Load a ControlNet, float32, on the CPU: a folder, a file or a Hub name (`hub.py`). Raises FzError, in one line,
    for anything that is none of Stable Diffusion v1's.
    """
    path = located(path, "control", OF_CONTROLNET)
    try:
        part = from_folder(path) if path.is_dir() else from_file(path)
        check_config(part.config, part.where)
        hints = tuple(part.config.get("conditioning_embedding_out_channels", (16, 32, 96, 256)))
        with torch.device("meta"):
            control = ControlNet(ControlConfig(UNetConfig.from_json(as_unet(part.config)), hints))
        return fill(control, part.weights.tensors, str(part.weights.file), EXPECTED)
    except FzError as error:
        raise FzError(f"control: {str(error).replace(arch.SD1, EXPECTED)}") from None


def check_beside(control: ControlNet, unet: UNetConfig, vae_stride: int) -> None:
    """Raise FzError unless this ControlNet fits that UNet and the latents of that VAE."""
    fields = ("block_out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups")
    for name in fields:
        got, expected = getattr(control.config, name), getattr(unet, name)
        if got != expected:
            raise FzError(
                f"control: its {name} is {got}, the checkpoint's {expected}. Expected a ControlNet of the same model."
            )
    if control.hint_stride != vae_stride:
        got = f"control: its pictures are {control.hint_stride} times as large as its latents"
        raise FzError(f"{got}, the checkpoint's {vae_stride} times. Expected a ControlNet of the same model.")


def from_folder(path: Path) -> Part:
    """A diffusers folder, or a pipeline's that has one in controlnet/."""
    folder = path / "controlnet" if (path / "controlnet").is_dir() else path
    names = [name for name in layouts.weight_files("unet") if (folder / name).exists()]
    if not names or not (folder / "config.json").exists():
        if (folder / "unet").is_dir():
            raise FzError(f"{folder} is a whole checkpoint. {EXPECTED}")
        refuse_gone(folder, ["config.json", *layouts.weight_files("unet")])
        there = some(sorted(p.name for p in folder.glob("*"))) or "nothing"
        raise FzError(
            f"{folder} has no config.json with diffusion_pytorch_model.safetensors (there: {there}). {EXPECTED}"
        )
    config, weights = read_json(folder / "config.json"), read_weights(folder / names[0])
    if config.get("_class_name") not in (None, "ControlNetModel"):
        raise FzError(f"{folder} is a {arch.short(config['_class_name'])}, expected a ControlNetModel. {EXPECTED}")
    refuse_others(weights.tensors, folder)
    return Part(config, weights, folder / "config.json")


def from_file(path: Path) -> Part:
    """A single file: of a ControlNet alone, or, as first published, in one with its UNet, VAE and text encoder."""
    weights = read_weights(path)
    state = under(weights.tensors, layouts.CONTROL_PREFIX) or weights.tensors
    refuse_others([*state, *(["difference"] if "difference" in weights.tensors else [])], path)
    if any(key.startswith("input_hint_block.") for key in state):
        state = layouts.rename(state, layouts.control_table(*levels_of(state, path)), str(path))
    if not any(key.startswith("controlnet_cond_embedding.") for key in state):
        what = layouts.other_model(state)
        raise FzError(f"{path} is {what or f'no ControlNet (it has {some(state)})'}. {EXPECTED}")
    own = beside("control", path)
    if own.exists() and (config := read_json(own)).get("_class_name") == "ControlNetModel":
        return Part(config, weights.with_tensors(state), own)
    return Part(infer(state, path), weights.with_tensors(state), path)


def refuse_others(keys: Collection[str], path: Path) -> None:
    if what := next((what for part, what in OTHERS if any(part in key for key in keys)), None):
        raise FzError(f"{path} is {what}. {EXPECTED}")


def levels_of(state: Mapping[str, Tensor], path: Path) -> tuple[int, int]:
    """How many ResNets a level of the original layout has, and how many levels there are."""
    levels = 1 + sum(key.endswith(".0.op.weight") for key in state)
    zeros = count(state, "zero_convs.")
    if zeros <= levels or zeros % levels:
        raise FzError(f"{path} has {zeros} zero convolutions for {levels} levels. Is the file whole? {EXPECTED}")
    return zeros // levels - 1, levels


def infer(state: Mapping[str, Tensor], path: Path) -> dict:
    """The config of a ControlNet in our names from the shapes of its weights; 8 heads and 32 groups are assumed."""
    levels, layers = count(state, "down_blocks."), count(state, "down_blocks.0.resnets.")
    widths = [shape(state, f"down_blocks.{i}.resnets.{layers - 1}.conv2.weight", path)[0] for i in range(levels)]
    if not widths or any(width % 32 for width in widths):
        raise FzError(f"{path}: widths {widths} do not divide into v1's 32 groups. Put its config.json beside it.")
    attention = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(levels)]
    hints = [shape(state, "controlnet_cond_embedding.conv_in.weight", path)[0]]
    blocks = count(state, "controlnet_cond_embedding.blocks.")
    hints += [shape(state, f"controlnet_cond_embedding.blocks.{i}.weight", path)[0] for i in range(1, blocks, 2)]
    cross = [t.shape[-1] for key, t in state.items() if key.endswith("attn2.to_k.weight")]
    linear = any(key.endswith("proj_in.weight") and t.ndim == 2 for key, t in state.items())
    return {
        "in_channels": shape(state, "conv_in.weight", path)[1],
        "conditioning_channels": shape(state, "controlnet_cond_embedding.conv_in.weight", path)[1],
        "conditioning_embedding_out_channels": hints,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "attention_head_dim": 8,
        "cross_attention_dim": cross[0] if cross else 768,
        "use_linear_projection": linear,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
    }


def as_unet(config: Mapping) -> dict:
    """The config of the UNet whose encoder this is."""
    own = (*FIELDS, "conditioning_embedding_out_channels", "_class_name")
    levels = config.get("block_out_channels")
    up = ["UpBlock2D"] * len(levels) if isinstance(levels, (list, tuple)) else None
    return {**{key: value for key, value in config.items() if key not in own}, "up_block_types": up}


def check_config(config: Mapping, where: Path) -> None:
    """Raise FzError for a config that is no ControlNet's of Stable Diffusion v1."""
    arch.only(config, FIELDS, where)
    arch.check_unet(as_unet(config), where)
    hints = config.get("conditioning_embedding_out_channels", [16])
    arch.whole_numbers(config, ("conditioning_embedding_out_channels",), where)
    if not isinstance(hints, (list, tuple)) or len(hints) > arch.MOST_LEVELS:
        raise FzError(
            f"{where}: conditioning_embedding_out_channels is {arch.short(hints)}, expected a list of widths."
        )
