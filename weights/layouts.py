"""Names in Stable Diffusion v1 checkpoints, as tables: the original (CompVis) layout, old diffusers', Tune-A-Video's,
against ours.

Ours are current diffusers' names, with FateZero's for the temporal layers. Each table maps module names, that is a key
without its last part (`weight`, `bias`) or a prefix of one. This file knows names only: files are in `read.py`, shapes
in `architecture.py` and `inferred.py`.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from fz.errors import FzError

Value = TypeVar("Value")

# ---- the original layout: model.diffusion_model. -----------------------------------------------------------

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

UNET_FIXED = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)

UNET_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def unet_table(layers: int, up_attention: tuple[bool, ...]) -> dict[str, str]:
    """CompVis module -> ours. layers: ResNets of a down block; up_attention: which up blocks have attention, deepest
    first.

    CompVis numbers blocks in one row, a change of size being a block of its own going down and the end of a block going
    up: with 2 layers, input_blocks 1 2 (3) | 4 5 (6) | 7 8 (9) | 10 11 and output_blocks 0 1 2 | 3 4 5 | 6 7 8 | 9 10
    11.
    """
    levels, rows = len(up_attention), list(UNET_FIXED)

    def resnet(theirs: str, ours: str) -> None:
        rows.extend((f"{theirs}.{a}", f"{ours}.{b}") for a, b in UNET_RESNET)

    for level in range(levels):
        first = 1 + level * (layers + 1)
        for i in range(layers):
            resnet(f"input_blocks.{first + i}.0", f"down_blocks.{level}.resnets.{i}")
            rows.append((f"input_blocks.{first + i}.1", f"down_blocks.{level}.attentions.{i}"))
        if level < levels - 1:
            rows.append((f"input_blocks.{first + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))

    resnet("middle_block.0", "mid_block.resnets.0")
    rows.append(("middle_block.1", "mid_block.attentions.0"))
    resnet("middle_block.2", "mid_block.resnets.1")

    for level, attention in enumerate(up_attention):
        first = level * (layers + 1)
        for i in range(layers + 1):
            resnet(f"output_blocks.{first + i}.0", f"up_blocks.{level}.resnets.{i}")
            if attention:
                rows.append((f"output_blocks.{first + i}.1", f"up_blocks.{level}.attentions.{i}"))
        if level < levels - 1:
            # the last module of the block: after the ResNet, and after the attention where there is one
            rows.append(
                (f"output_blocks.{first + layers}.{2 if attention else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv")
            )
    return dict(rows)


# ---- the original layout: control_model. ---------------------------------------------------------------------

CONTROL_PREFIX = "control_model."


def control_table(layers: int, levels: int) -> dict[str, str]:
    """ldm module of a ControlNet -> ours: the UNet's encoder, what brings in the picture, and the convolutions that
    began at zero.
    """
    rows = unet_table(layers, (False,) * levels)
    hints = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    rows |= {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(hints)}
    rows |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(levels * (layers + 1))}
    return rows | {"middle_block_out.0": "controlnet_mid_block"}


# ---- the original layout: first_stage_model. ---------------------------------------------------------------

VAE_FIXED = (
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    *((f"{half}.conv_in", f"{half}.conv_in") for half in ("encoder", "decoder")),
    *((f"{half}.norm_out", f"{half}.conv_norm_out") for half in ("encoder", "decoder")),
    *((f"{half}.conv_out", f"{half}.conv_out") for half in ("encoder", "decoder")),
)

VAE_RESNET = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)

# the one attention of the VAE's middle block: (ldm, old diffusers, ours)
VAE_ATTENTION = (
    ("norm", "group_norm", "group_norm"),
    ("q", "query", "to_q"),
    ("k", "key", "to_k"),
    ("v", "value", "to_v"),
    ("proj_out", "proj_attn", "to_out.0"),
)


def vae_table(levels: int, layers: int) -> dict[str, str]:
    """CompVis module -> ours. CompVis numbers the decoder's levels by resolution (up.0 is the last to run), diffusers
    by order.
    """
    rows = list(VAE_FIXED)
    for half, side, blocks, count in (
        ("encoder", "down", "down_blocks", layers),
        ("decoder", "up", "up_blocks", layers + 1),
    ):
        for level in range(levels):
            theirs, ours = (
                f"{half}.{side}.{level}",
                f"{half}.{blocks}.{level if half == 'encoder' else levels - 1 - level}",
            )
            for i in range(count):
                rows.extend((f"{theirs}.block.{i}.{a}", f"{ours}.resnets.{i}.{b}") for a, b in VAE_RESNET)
            rows.append((f"{theirs}.{side}sample.conv", f"{ours}.{side}samplers.0.conv"))
        for i in range(2):
            rows.extend((f"{half}.mid.block_{i + 1}.{a}", f"{half}.mid_block.resnets.{i}.{b}") for a, b in VAE_RESNET)
        rows.extend((f"{half}.mid.attn_1.{a}", f"{half}.mid_block.attentions.0.{b}") for a, _, b in VAE_ATTENTION)
    return dict(rows)


OLD_VAE_TABLE = {
    f"{half}.mid_block.attentions.0.{old}": f"{half}.mid_block.attentions.0.{ours}"
    for half in ("encoder", "decoder")
    for _, old, ours in VAE_ATTENTION
}

# the middle block's attention under ours' names in the original layout, as converters of today write it
MIXED_VAE_TABLE = {
    f"{half}.mid.attn_1.{name}": f"{half}.mid_block.attentions.0.{ours}"
    for half in ("encoder", "decoder")
    for names in VAE_ATTENTION
    for name, ours in ((names[1], names[2]), (names[2], names[2]))
}

# ---- tuned checkpoints -------------------------------------------------------------------------------------

# part of a key: Tune-A-Video's -> FateZero's, which are ours
TUNED = {"attn_temp": "attn_temporal", "norm_temp": "norm_temporal"}
TEMPORAL_ATTENTION, TEMPORAL_CONV = ".attn_temporal.", "conv_temporal."

# ---- what checkpoints hold beside weights ------------------------------------------------------------------

# made by training code, no use here: dropped, at the start of a key
LEFT_OUT = (
    "model_ema.",  # the set that was not chosen; `choose_ema` says which was
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "logvar",
    "lvlb_weights",
    "scale_factor",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "loss.",  # of a VAE's own file
    "embedding_manager.",  # of textual inversion's training
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.transformer.embeddings.position_ids",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "cond_stage_model.transformer.text_projection",
)

# text encoder: position_ids is a buffer that the model makes itself; the others belong to CLIP's comparison with images
TEXT_LEFT_OUT = ("embeddings.position_ids", "text_projection.weight", "logit_scale")

# Some key contains this -> what the file is. The first that fits is named.
OTHER_MODELS = (
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint"),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint (OpenCLIP text encoder)"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    # put there by what trained it: a mark without a weight
    ("v_pred", "a model that predicts v, not noise (v-prediction)"),
    ("edm_vpred", "a model that predicts v, not noise (v-prediction)"),
    ("ztsnr", "a model of another noise schedule (zero terminal SNR)"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("lora_", "a LoRA file (a change to a model, not a model)"),
    ("lora.", "a LoRA file (a change to a model, not a model)"),
    ("hada_", "a LoHa file (a change to a model, not a model)"),
    ("string_to_param", "a textual inversion embedding"),
    ("emb_params", "a textual inversion embedding"),
)

# Files of a diffusers folder: (folder, stem of the weights). First that exists: full precision before fp16, safetensors
# before pickles.
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
TEXT_STEMS = {".safetensors": "model", ".bin": "pytorch_model"}


def weight_files(part: str, variant: str | None = None) -> list[str]:
    """Names under which a part's weights may lie, best first; a name that ends in .json is the index of shards."""
    names = []
    for v in (variant,) if variant else (None, "fp16"):
        for ending in (".safetensors", ".bin"):
            stem = STEMS.get(part) or TEXT_STEMS[ending]
            names.append(f"{stem}.{v}{ending}" if v else stem + ending)
            names.append(f"{stem}{ending}.index.{v}.json" if v else f"{stem}{ending}.index.json")
    return names


# ---- renaming ----------------------------------------------------------------------------------------------


def rename(state: Mapping[str, Value], table: Mapping[str, str], what: str) -> dict[str, Value]:
    """state with the longest prefix of each key that is in the table replaced; other keys stay, to be refused by name
    later.

    Raises FzError if two keys get one name (a file that holds a layer in two layouts).
    """
    renamed: dict[str, Value] = {}
    for key, value in state.items():
        parts = key.split(".")
        for n in range(len(parts) - 1, 0, -1):
            if (module := ".".join(parts[:n])) in table:
                key = ".".join((table[module], *parts[n:]))
                break
        if key in renamed:
            raise FzError(
                f"{what}: {key} is there twice, under two names. Expected one layout; convert the file again."
            )
        renamed[key] = value
    return renamed


def rename_parts(state: Mapping[str, Value], parts: Mapping[str, str]) -> dict[str, Value]:
    """state with every dot-separated part of a key that is in `parts` replaced."""
    return {".".join(parts.get(p, p) for p in key.split(".")): value for key, value in state.items()}


# what trainers wrap a whole model in
WRAPPERS = ("module.", "state_dict.", "_orig_mod.")


def unwrapped(state: Mapping[str, Value]) -> dict[str, Value]:
    """state without the wrapper's name, where all keys begin with one."""
    state = dict(state)
    while state and (prefix := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), None)):
        state = under(state, prefix)
    return state


def under(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries whose keys start with prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def other_model(keys: Iterable[str]) -> str | None:
    """What kind of file has such keys, where it is one that is known and no Stable Diffusion v1; else None."""
    keys = list(keys)
    return next((what for part, what in OTHER_MODELS if any(part in key for key in keys)), None)


def some(names: Iterable[str], most: int = 3) -> str:
    """'a, b, c, …': the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
