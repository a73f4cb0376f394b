"""Any Stable Diffusion v1 checkpoint to models: the one function that the editor calls.

Models are built without memory and take the file's tensors as they are, strictly: a key that is missing, left over or
of another shape is an error that names it. What files and names there are is in `source.py`; models come out in float32
on the CPU, whatever the file has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fz.errors import FzError
from fz.model.clip_text import TextConfig, TextModel
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.settings.place import expanded
from fz.weights.architecture import check_unet
from fz.weights.changes import NOTHING, Changes
from fz.weights.hub import located
from fz.weights.layouts import TEMPORAL_ATTENTION, TEMPORAL_CONV, some
from fz.weights.names import shown
from fz.weights.needed import OF_TOKENIZER, OF_VAE, of_checkpoint
from fz.weights.read import Weights
from fz.weights.source import Part, check_model_config, from_folder, from_single_file
from fz.weights.tokenizer import find_tokenizer, load_tokenizer

Model = TypeVar("Model", bound=nn.Module)
EMA = ("auto", "ema", "plain")
# of CLIP's config, what the encoder's arithmetic depends on
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Checkpoint:
    """Models ready to run: float32, CPU, eval, no gradients.

    scheduler: what `Schedule.from_config` reads (beta_start …); tuned: whether the UNet has temporal
    layers; report: one line of what was loaded.
    """

    unet: UNet
    vae: VAE
    text: TextEncoder
    scheduler: dict
    tuned: bool
    report: str


def load_checkpoint(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    model_config: str | Path | None = None,
    ema: str = "auto",
    changes: Changes = NOTHING,
) -> Checkpoint:
    """Load a diffusers folder or a CompVis single file (.ckpt, .safetensors), tuned (FateZero, Tune-A-Video) or not.

    path may be a Hub name, owner/name[@revision], and so may vae, a folder or file of a VAE to use instead, and
    tokenizer, a folder of CLIP's vocabulary for a checkpoint that has none: `hub.py` finds or fetches them.
    model_config: folder whose unet/, vae/, text_encoder/config.json and scheduler/ say the architecture, for a single
    file that is not quite Stable Diffusion v1's. ema: which set of a checkpoint that has two (a single file with EMA, a
    folder with non_ema weights): 'ema', 'plain' or 'auto' (EMA where it is there). changes: LoRA, textual inversions,
    clip skip. Raises FzError, in one line, for anything that is not a whole and sound Stable Diffusion v1 checkpoint.
    """
    if ema not in EMA:
        raise FzError(f"ema: got {ema!r}, expected one of {', '.join(EMA)}.")
    names = [shown(path), shown(vae) if vae else ""]
    model_config = expanded(model_config, "model_config") if model_config is not None else None
    check_model_config(model_config)
    # before a checkpoint is looked for: what is to be put on it
    on_top = changes.read()
    path = located(path, "checkpoint", of_checkpoint(ema, vae is None, tokenizer is None))
    vae = located(vae, "vae", OF_VAE) if vae is not None else None
    tokenizer = located(tokenizer, "tokenizer", OF_TOKENIZER) if tokenizer is not None else None
    # the parts first: a wrong checkpoint is the better message than a missing tokenizer
    source = (from_folder if path.is_dir() else from_single_file)(path, vae, model_config, ema)
    vocabulary = find_tokenizer(tokenizer, path if path.is_dir() else None, model_config)

    changed, words = on_top.applied(source)
    unet, text_model = build_unet(changed.unet), build_text(changed.text)
    width = text_model.config.hidden_size
    if width != unet.config.cross_attention_dim:
        got = f"{path}: its text encoder is {width} wide, its UNet's cross-attention {unet.config.cross_attention_dim}"
        raise FzError(f"{got}. Expected the same; the parts are not of one model.")
    autoencoder = build_vae(source.vae)
    own_tokens = text_model.config.vocab_size - len({token for tokens in words.values() for token in tokens})
    text = TextEncoder(load_tokenizer(vocabulary, own_tokens), text_model, words)

    parts = ", ".join(
        f"{name} {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M ({part.weights.precision} "
        f"{part.weights.form})"
        for name, model, part in (
            ("UNet", unet, source.unet),
            (f"VAE{f' of {names[1]}' if vae else ''}", autoencoder, source.vae),
            ("text encoder", text_model, source.text),
        )
    )
    report = f"{names[0]}: {source.kind}, {parts}, {tuning(unet.config.temporal)}{on_top}"
    return Checkpoint(unet, autoencoder, text, source.scheduler, unet.config.temporal is not None, report)


def tuning(temporal: Temporal | None) -> str:
    if temporal is None:
        return "untuned"
    parts = ["temporal attention"] if temporal.attention else []
    if temporal.conv:
        ranks = f" of rank {some([str(rank) for _, rank in temporal.ranks], 9)}" if temporal.conv == "low_rank" else ""
        parts.append(f"{temporal.conv.replace('_', '-')} temporal convolutions{ranks}")
    return f"tuned ({', '.join(parts)})"


# ---- models ------------------------------------------------------------------------------------------------


def build_unet(part: Part) -> UNet:
    check_unet(part.config, part.where)
    temporal = find_temporal(part.weights)
    config = UNetConfig.from_json(part.config, temporal)
    if temporal and temporal.conv == "low_rank":
        widths = {*config.block_out_channels, config.out_channels}
        if lacking := sorted(widths - dict(temporal.ranks).keys()):
            raise FzError(
                f"unet: no temporal convolutions of width {some(map(str, lacking))}, though others are there. Is "
                "the file whole?"
            )
    with torch.device("meta"):
        unet = UNet(config)
    return fill(unet, part.weights.tensors, "unet", of_sd(part.weights))


def find_temporal(weights: Weights) -> Temporal | None:
    """The temporal part that the weights bring, ranks included; None for an untuned UNet."""
    attention = any(TEMPORAL_ATTENTION in key for key in weights.tensors)
    downs = {
        key: t for key, t in weights.tensors.items() if key.endswith(f"{TEMPORAL_CONV}down.weight") and t.ndim == 3
    }
    full = any(key.endswith(f"{TEMPORAL_CONV}weight") for key in weights.tensors)
    if not (attention or downs or full):
        return None
    if downs and full:
        raise FzError(f"unet: {weights.file} has full and low-rank temporal convolutions. Expected one kind.")
    ranks = tuple(sorted({(t.shape[1], t.shape[0]) for t in downs.values()}))
    if len(dict(ranks)) != len(ranks):
        raise FzError(
            f"unet: {weights.file} has temporal convolutions of one width and several ranks {ranks}. Expected one "
            "rank a width."
        )
    return Temporal(attention, "low_rank" if downs else "full" if full else None, ranks)


def build_vae(part: Part) -> VAE:
    with torch.device("meta"):
        vae = VAE(VAEConfig.from_json(part.config))
    return fill(vae, part.weights.tensors, "vae", of_sd(part.weights))


def build_text(part: Part) -> TextModel:
    config = TextConfig(**{name: part.config[name] for name in TEXT_FIELDS if name in part.config})
    with torch.device("meta"):
        model = TextModel(config)
    return fill(
        model, without_skipped(part.weights.tensors, config.num_hidden_layers), "text encoder", of_sd(part.weights)
    )


def without_skipped(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A text encoder's weights without layers beyond its config's: 'clip skip' is saved as a smaller number of
    layers.
    """
    kept = tuple(f"encoder.layers.{i}." for i in range(layers))
    return {key: t for key, t in state.items() if not key.startswith("encoder.layers.") or key.startswith(kept)}


def of_sd(weights: Weights) -> str:
    return f"Is {weights.file} of a Stable Diffusion v1.x checkpoint?"


def fill(model: Model, state: Mapping[str, Tensor], what: str, expected_of: str) -> Model:
    """Give a model its weights, float32. Raises FzError, naming keys and what was expected, unless names and shapes are
    the model's.
    """
    expected = model.state_dict()
    wrong_shapes = {
        k: (tuple(state[k].shape), tuple(t.shape))
        for k, t in expected.items()
        if k in state and state[k].shape != t.shape
    }
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of the wrong shape": [f"{key}: {got}, expected {shape}" for key, (got, shape) in wrong_shapes.items()],
        "no floating-point numbers": [key for key in expected if key in state and not state[key].is_floating_point()],
    }
    found = "; ".join(
        f"{len(k)} key{'s' if len(k) > 1 else ''} {problem} ({some(k)})" for problem, k in problems.items() if k
    )
    if found:
        raise FzError(f"{what}: {found}. {expected_of}")
    model.load_state_dict({key: ready(state[key]) for key in expected}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def ready(t: Tensor) -> Tensor:
    """t as a float32 tensor of its own, mapped from the file where that has it in float32.

    Copied where the file has it at an odd address: sums could then differ in the last bit from those of another
    format's weights.
    """
    t = t.to(torch.float32).contiguous()
    return t if t.data_ptr() % 64 == 0 else t.clone()
