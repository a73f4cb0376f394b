"""Which configs have models whose single file brings none? What the shapes of their weights say.

The result is in the form of diffusers' config.json. Shapes do not tell the number of heads, the groups of a GroupNorm,
or the noise schedule: those are Stable Diffusion v1's (8, 32, `architecture.SCHEDULE`), unless a config says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fz.errors import FzError
from fz.weights.architecture import CROSS_WIDTHS, INPUTS, MODEL_CONFIG, SD1


def infer_unet(state: Mapping[str, Tensor], where: Path) -> dict:
    """The config of a CompVis UNet (keys without prefix) from the shapes of its weights; 8 heads and 32 groups are
    assumed.
    """
    conv_in = shape(state, "input_blocks.0.0.weight", where)
    if conv_in[1] != 4:
        raise FzError(
            f"{where}: conv_in takes {conv_in[1]} channels, expected 4: it is "
            f"{INPUTS.get(conv_in[1], 'another model')}. {SD1}"
        )
    cross = next((t.shape[-1] for key, t in state.items() if key.endswith("attn2.to_k.weight")), 768)
    if cross in CROSS_WIDTHS:
        raise FzError(
            f"{where}: its cross-attention is {cross} wide, which is {CROSS_WIDTHS[cross]}'s; v1's is 768. {SD1}"
        )
    if any(key.endswith("1.proj_in.weight") and t.ndim == 2 for key, t in state.items()):
        raise FzError(f"{where}: proj_in is linear, which is Stable Diffusion 2's; v1's is a 1x1 convolution. {SD1}")
    if any(".transformer_blocks.1." in key for key in state):
        raise FzError(f"{where}: has several transformer layers a block, as Stable Diffusion XL. {SD1}")

    levels: list[list[tuple[int, bool]]] = [[]]  # of each level, its ResNets' widths and whether attention follows
    i = 1
    while any(key.startswith(f"input_blocks.{i}.") for key in state):
        if f"input_blocks.{i}.0.op.weight" in state:
            levels.append([])
        else:
            width = shape(state, f"input_blocks.{i}.0.out_layers.3.weight", where)[0]
            levels[-1].append((width, f"input_blocks.{i}.1.norm.weight" in state))
        i += 1
    layers = len(levels[0])
    if not layers or any(len(level) != layers or len(set(level)) != 1 for level in levels):
        raise FzError(
            f"{where}: its UNet's levels are not alike ({[len(level) for level in levels]} layers). {MODEL_CONFIG}"
        )
    widths = [level[0][0] for level in levels]
    if any(width % 32 for width in widths):
        raise FzError(f"{where}: widths {widths} do not divide into v1's 32 groups. {MODEL_CONFIG}")
    up = [f"output_blocks.{level * (layers + 1)}.1.norm.weight" in state for level in range(len(levels))]
    return {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "attention_head_dim": 8,
        "cross_attention_dim": cross,
        "norm_num_groups": 32,
        "down_block_types": ["CrossAttnDownBlock2D" if level[0][1] else "DownBlock2D" for level in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in up],
    }


def infer_vae(state: Mapping[str, Tensor], where: Path) -> dict:
    """The config of a VAE, in our names, from the shapes of its weights; 32 groups are assumed."""
    levels = count(state, "encoder.down_blocks.")
    widths = [shape(state, f"encoder.down_blocks.{level}.resnets.0.conv2.weight", where)[0] for level in range(levels)]
    if not widths or any(width % 32 for width in widths):
        raise FzError(f"{where}: VAE widths {widths} do not divide into v1's 32 groups. {MODEL_CONFIG}")
    return {
        "block_out_channels": widths,
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": shape(state, "post_quant_conv.weight", where)[0],
        "norm_num_groups": 32,
    }


def infer_text(state: Mapping[str, Tensor], where: Path) -> dict:
    """The config of a CLIP text encoder (keys without `text_model.`) from the shapes of its weights; heads of 64 are
    assumed.
    """
    vocab, hidden = shape(state, "embeddings.token_embedding.weight", where)
    if hidden % 64:
        raise FzError(f"{where}: the text encoder is {hidden} wide, no multiple of CLIP's heads of 64. {MODEL_CONFIG}")
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "max_position_embeddings": shape(state, "embeddings.position_embedding.weight", where)[0],
        "num_hidden_layers": count(state, "encoder.layers."),
        "intermediate_size": shape(state, "encoder.layers.0.mlp.fc1.weight", where)[0],
        "num_attention_heads": hidden // 64,
        "hidden_act": "quick_gelu",
    }


def shape(state: Mapping[str, Tensor], key: str, where: Path) -> tuple[int, ...]:
    if key not in state:
        raise FzError(f"{where}: {key} is missing, from which the architecture is read. {SD1}")
    return tuple(state[key].shape)


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow prefix in the keys."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
