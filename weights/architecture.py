"""Which configs are of Stable Diffusion v1, and what are the others? Refused by name.

Each part's config is a dictionary in the form of diffusers' config.json, read from such a file or inferred from a
single file's weights (`inferred.py`).
"""

import math
from collections.abc import Mapping
from pathlib import Path

from fz.errors import FzError, suggest
from fz.model.unet_config import SD1_ONLY
from fz.model.vae import SCALE

SD1 = "Use a Stable Diffusion v1.x checkpoint."
MODEL_CONFIG = "Pass --model-config DIR with unet/config.json, vae/config.json and text_encoder/config.json."

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}

INPUTS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an InstructPix2Pix model", 9: "an inpainting model"}
CROSS_WIDTHS = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
# names without what the inflated versions add (2D, 3D, Pseudo3D)
UNET_BLOCKS = ("CrossAttnDownBlock", "DownBlock", "UpBlock", "CrossAttnUpBlock")

# field -> the values that mean 'as Stable Diffusion v1'; the fields that fz.model.unet reads or refuses itself are not
# here
UNET_ONLY = {
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": (None, "UNetMidBlock2DCrossAttn", "UNetMidBlock3DCrossAttn", "UNetMidBlockPseudo3DCrossAttn"),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# read by fz.model.unet, of no effect here, or left there by FateZero's trainer (the rank is read from the weights, the
# frames are settings)
UNET_READ = (
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "norm_num_groups",
    "norm_eps",
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "flip_sin_to_cos",
    "freq_shift",
)
UNET_NO_EFFECT = (
    "sample_size",
    "dropout",
    "addition_embed_type_num_heads",
    "lora",
    "SparseCausalAttention_index",
    "least_sc_channel",
    "temporal_downsample_time",
    # of diffusers' EMAModel, saved with the weights that it averaged
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
VAE_ONLY = {
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "latent_channels": (4,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "out_channels": (3,),
    "scaling_factor": (SCALE,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
SCHEDULER_ONLY = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
}
TEXT_ONLY = {"max_position_embeddings": (77,), "model_type": ("clip_text_model",), "hidden_act": ("quick_gelu", "gelu")}


def only(config: Mapping, fields: Mapping[str, tuple], where: Path | str) -> None:
    """Raise FzError for the first field that has another value than the listed ones; null is as good as false."""
    for name, allowed in fields.items():
        off = config.get(name) is None and not all(allowed)
        if name in config and config[name] not in allowed and not off:
            expected = " or ".join(map(repr, allowed))
            raise FzError(f"{where}: {name} is {short(config[name])}, expected {expected}. {SD1}")


# an original config's field -> the schedule's
LDM_SCHEDULE = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}


# the most that makes sense of each; models ten times as large as any that there is would pass
MOST = {
    "layers_per_block": 32,
    "num_hidden_layers": 256,
    "attention_head_dim": 4096,
    "num_attention_heads": 4096,
    "num_train_timesteps": 100_000,
    "vocab_size": 10_000_000,
    "block_out_channels": 32_768,
    "hidden_size": 32_768,
    "intermediate_size": 131_072,
}
MOST_LEVELS = 8


def whole_numbers(config: Mapping, names: tuple[str, ...], where: Path | str) -> None:
    """Raise FzError unless each of these fields, where it is there, is a positive whole number or a list of them, and
    none that no machine could hold.
    """
    for name in names:
        value, most = config.get(name, 1), MOST.get(name, 32_768)
        many = value if isinstance(value, (list, tuple)) and value else [value]
        if not all(isinstance(n, int) and n is not True and n > 0 for n in many):
            raise FzError(f"{where}: {name} is {short(value)}, expected a whole number above 0, or a list of them.")
        if max(many) > most:
            raise FzError(f"{where}: {name} is {short(value)}, expected at most {most}. Is it the right config.json?")


def numbers(config: Mapping, bounds: Mapping[str, tuple[float, float]], where: Path | str) -> None:
    """Raise FzError unless each of these fields, where it is there, is a number from the first to the second bound."""
    for name, (least, most) in bounds.items():
        value = config.get(name, least)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise FzError(f"{where}: {name} is {short(value)}, expected a number from {least:g} to {most:g}.")


def switches(config: Mapping, names: tuple[str, ...], where: Path | str) -> None:
    """Raise FzError unless each of these fields, where it is there, is true or false."""
    for name in names:
        if not isinstance(config.get(name, False), bool):
            raise FzError(f"{where}: {name} is {short(config[name])}, expected true or false.")


def short(value: object) -> str:
    """What a message shows of a value: of a file of numbers without end, its beginning."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}…"


def lists(config: Mapping, names: tuple[str, ...], where: Path | str) -> None:
    """Raise FzError unless these fields are there, as lists of one length."""
    for name in names:
        if not isinstance(config.get(name), (list, tuple)) or not config[name]:
            raise FzError(
                f"{where}: {name} is {short(config.get(name))}, expected a list, one entry a level. Is it the right "
                "config.json?"
            )
        if len(config[name]) > MOST_LEVELS:
            raise FzError(f"{where}: {name} has {len(config[name])} entries, expected at most {MOST_LEVELS} levels.")
        if len(config[name]) != len(config[names[0]]):
            raise FzError(
                f"{where}: {name} has {len(config[name])} entries, {names[0]} has {len(config[names[0]])}. Expected "
                "as many."
            )


def check_unet(config: Mapping, where: Path | str) -> None:
    """Raise FzError if a UNet config is another model's, or makes no sense. What fz.model.unet refuses itself is left
    to it.
    """
    lists(config, ("block_out_channels", "down_block_types", "up_block_types"), where)
    counts = (
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "in_channels",
        "out_channels",
        "cross_attention_dim",
    )
    whole_numbers(config, counts, where)
    for name in ("layers_per_block", "cross_attention_dim", "norm_num_groups"):
        if isinstance(config.get(name), (list, tuple)):
            raise FzError(f"{where}: {name} is {config[name]!r}, expected one number for all levels. {SD1}")
    numbers(config, {"norm_eps": (1e-12, 1), "freq_shift": (-10, 10)}, where)
    switches(config, ("flip_sin_to_cos",), where)
    inputs = config.get("in_channels", 4)
    if inputs != 4:
        raise FzError(
            f"{where}: in_channels is {inputs}, expected 4: it is {INPUTS.get(inputs, 'another model')}. {SD1}"
        )
    if config.get("out_channels", 4) != 4:
        raise FzError(f"{where}: out_channels is {config['out_channels']}, expected 4. {SD1}")
    cross = config.get("cross_attention_dim", 768)
    if cross in CROSS_WIDTHS:
        raise FzError(f"{where}: cross_attention_dim is {cross}, which is {CROSS_WIDTHS[cross]}'s; v1's is 768. {SD1}")
    if config.get("use_linear_projection"):
        raise FzError(f"{where}: use_linear_projection is true, which is Stable Diffusion 2's. {SD1}")
    for name in ("down_block_types", "up_block_types"):
        for kind in config[name]:
            if str(kind).replace("Pseudo3D", "").replace("2D", "").replace("3D", "") not in UNET_BLOCKS:
                raise FzError(f"{where}: {name} has {kind!r}, expected CrossAttn or plain Down and Up blocks. {SD1}")
    # null: not set
    only({name: value for name, value in config.items() if value is not None}, UNET_ONLY, where)
    known = {*UNET_ONLY, *SD1_ONLY, *UNET_READ, *UNET_NO_EFFECT}
    for name, value in config.items():
        if name not in known and not name.startswith("_") and value not in (None, False):
            raise FzError(
                f"{where}: unknown field {name} ({value!r}), which may change the model.{suggest(name, known)} {SD1}"
            )
    widths, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    whole_numbers({"attention_head_dim": heads}, ("attention_head_dim",), where)
    heads = heads if isinstance(heads, (list, tuple)) else [heads] * len(widths)
    if len(heads) != len(widths):
        raise FzError(
            f"{where}: attention_head_dim has {len(heads)} entries, block_out_channels has {len(widths)}. Expected "
            "as many."
        )
    for width, n in zip(widths, heads, strict=True):
        if width % groups or width % n:
            raise FzError(
                f"{where}: a width of {width} does not divide into {groups} groups and {n} heads. Check both."
            )


def check_vae(config: Mapping, where: Path | str) -> None:
    """Raise FzError if a VAE config is not of Stable Diffusion v1's kind."""
    lists(config, ("block_out_channels",), where)
    whole_numbers(config, ("block_out_channels", "layers_per_block", "norm_num_groups", "latent_channels"), where)
    only(config, VAE_ONLY, where)
    for name, expected in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if not isinstance(config.get(name, []), (list, tuple)):
            raise FzError(f"{where}: {name} is {short(config[name])}, expected a list, one entry a level.")
        if odd := [kind for kind in config.get(name, ()) if kind != expected]:
            raise FzError(f"{where}: {name} has {odd[0]!r}, expected {expected!r}. {SD1}")
    groups = config.get("norm_num_groups", 32)
    if odd := [width for width in config["block_out_channels"] if width % groups]:
        raise FzError(f"{where}: a width of {odd[0]} does not divide into {groups} groups. Check norm_num_groups.")


def check_text(config: Mapping, where: Path | str) -> Mapping:
    """The text part of a CLIP config. Raises FzError if it is no CLIP text encoder of 77 tokens."""
    config = config.get("text_config", config) if config.get("model_type") == "clip" else config
    if not isinstance(config, Mapping):
        raise FzError(f"{where}: text_config is {short(config)}, expected an object. Is it the right config.json?")
    only(config, TEXT_ONLY, where)
    whole_numbers(
        config, ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"), where
    )
    numbers(config, {"layer_norm_eps": (1e-12, 1)}, where)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10_000_000):
            raise FzError(f"{where}: {name} is {short(value)}, expected a token's number.")
    if config.get("hidden_size", 512) % config.get("num_attention_heads", 8):
        raise FzError(f"{where}: hidden_size is not a multiple of num_attention_heads. Check text_encoder/config.json.")
    return config


def check_scheduler(config: Mapping, where: Path | str) -> dict:
    """SCHEDULE with what the config says. Raises FzError for what is not plain noise prediction.

    clip_sample is ignored: it is for pixels in [-1, 1], and every scheduler saved without it would turn it on.
    """
    only(config, SCHEDULER_ONLY, where)
    whole_numbers(config, ("num_train_timesteps",), where)
    switches(config, ("set_alpha_to_one",), where)
    found = {name: config.get(name, value) for name, value in SCHEDULE.items()}
    numbers(found, {"beta_start": (1e-9, 0.5), "beta_end": (1e-9, 0.999)}, where)
    if found["beta_start"] > found["beta_end"]:
        raise FzError(f"{where}: beta_start {found['beta_start']} is above beta_end {found['beta_end']}.")
    offset, steps = found["steps_offset"], found["num_train_timesteps"]
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < steps:
        raise FzError(f"{where}: steps_offset is {short(offset)}, expected a whole number from 0 to {steps - 1}.")
    return found


def check_original(config: object, scheduler: Mapping, where: Path | str) -> None:
    """Raise FzError if an original config (.yaml), as it lies beside a single file, is of a model that predicts
    something else than noise, or has another noise schedule or scale of latents than those that are used.
    """
    for name in ("model", "params"):
        config = config.get(name) if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping):
        return
    if (predicts := config.get("parameterization")) not in (None, "eps"):
        raise FzError(
            f"{where}: parameterization is {short(predicts)}, expected 'eps': the model beside it predicts something "
            f"else than noise. {SD1}"
        )
    used = {name: scheduler[ours] for name, ours in LDM_SCHEDULE.items()} | {"scale_factor": SCALE}
    for name, expected in used.items():
        value = config.get(name)
        if isinstance(value, (int, float)) and not math.isclose(value, expected, rel_tol=1e-6):
            do = SD1 if name == "scale_factor" else "Pass --model-config DIR with its scheduler/."
            raise FzError(f"{where}: {name} is {value:g}, and {expected:g} would be used. {do}")
