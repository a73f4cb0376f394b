"""LoRA files to changes of layers: alpha / rank · up · down, for every layer that a file names.

Read are kohya's names (lora_unet_…, lora_te_…, blocks by diffusers' numbers or the original's), diffusers' old and new
ones, PEFT's, ComfyUI's (diffusion_model., text_encoders.clip_l.), and LoCon's convolutions, with a middle or without.
What a file is, is told before a model is read: LoHa, LoKr and DoRA, and LoRA of other models, are refused by name.
Which model the change is for is only known by its layers.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fz.errors import FzError
from fz.weights.hub import located
from fz.weights.layouts import other_model, some
from fz.weights.names import shown
from fz.weights.needed import OF_LORA, beside
from fz.weights.read import about, read_any, read_json

# a key's end: which half of a layer's change it is
KEY = re.compile(
    r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<half>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight|(?:[._]lora)?\.(?P<alpha>alpha))"
)
PEFT = {"A": "down", "B": "up"}
# a key contains this -> what the file is
OTHER_KINDS = (
    ("hada_w", "a LoHa"),
    ("lokr_w", "a LoKr"),
    ("dora_scale", "a DoRA"),
    ("lora_magnitude_vector", "a DoRA"),
    ("oft_", "an OFT"),
    ("ia3", "an (IA)³"),
    (".on_input", "an (IA)³"),
    ("bundle_emb", "a LoRA with embeddings in it"),
)
# somewhere in a key -> the model
OTHER_NAMES = (
    (re.compile("lora_te2_"), "Stable Diffusion XL"),
    (re.compile(r"text_encoder_2\."), "Stable Diffusion XL"),
    (re.compile(r"^text_encoders\.(?!clip_[lg]\.)"), "Stable Diffusion 3, Flux or later"),
    (re.compile("joint_(transformer_)?blocks"), "Stable Diffusion 3"),
    (re.compile("(double|single)_blocks"), "Flux"),
    (re.compile(r"^(base_model\.model\.)?transformer\."), "Stable Diffusion 3, Flux or later"),
    (re.compile("lora_transformer_"), "Stable Diffusion 3, Flux or later"),
    (re.compile(r"^text_encoders\.clip_g\."), "Stable Diffusion XL"),
)
# kohya's ss_base_model_version begins so
OTHER_BASES = (
    ("sdxl", "Stable Diffusion XL"),
    ("sd_v2", "Stable Diffusion 2"),
    ("sd3", "Stable Diffusion 3"),
    ("flux", "Flux"),
)
# widths of the text that cross-attention reads, and of text encoders
OTHER_WIDTHS = {1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL", 2048: "Stable Diffusion XL"}
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text",
    "lora_te_": "text",
    "unet.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "text",
    "text_encoders.clip_l.transformer.": "text",
}
ONLY = "LoRA and LoCon for Stable Diffusion v1 are read"
LARGEST = 1e6  # of a strength, and of alpha


@dataclass
class Layer:
    """The change of one layer. up: (O, r) or (O, r, 1, 1); down: (r, I) or (r, I, k, k); mid: (r, r, k, k) or None.

    alpha: None for as much as the rank.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    mid: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """alpha / rank · up · down in float32, (O, I) or (O, I, k, k)."""
        up, down = self.up.float(), self.down.float()
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        if self.mid is not None:
            product = torch.einsum("oa,abkl,bi->oikl", up.flatten(1), self.mid.float(), down.flatten(1))
        else:
            product = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        return product * scale


@dataclass(frozen=True)
class LoRA:
    """A file's changes by layer: ('unet' or 'text', the layer's name with '_' for '.'). name: for people."""

    path: Path
    name: str
    strength: float
    layers: Mapping[tuple[str, str], Layer] = field(repr=False)

    def __str__(self) -> str:
        ranks = sorted({layer.rank for layer in self.layers.values()})
        of = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"LoRA {self.name} × {self.strength:g} ({len(self.layers)} layers of rank {of})"


# ---- files -------------------------------------------------------------------------------------------------


def read_lora(given: str | Path, strength: float = 1.0) -> LoRA:
    """Read a file, a Hub name's (`hub.py`) or a folder's. Raises FzError, beginning with 'lora:', for anything that is
    no sound LoRA for Stable Diffusion v1.
    """
    path = located(given, "lora", OF_LORA)
    state, said = tensors_of(path), about(path)
    refuse_others(path, state, said)
    layers: dict[tuple[str, str], Layer] = {}
    odd = []
    for key, tensor in state.items():
        found = KEY.fullmatch(key)
        if found is None:
            odd.append(key)
            continue
        layer = layers.setdefault(place_of(found["module"]), Layer())
        half = found["half"] or PEFT.get(found["peft"]) or "alpha"
        if getattr(layer, half) is not None:
            raise FzError(f"lora: {path} has the {half} of {found['module']} twice. Expected one; save it again.")
        setattr(layer, half, alpha_of(path, key, tensor) if half == "alpha" else tensor)
    if odd or not layers:
        raise FzError(f"lora: {path} has {len(odd)} keys that are no LoRA's ({some(odd)}). {ONLY}; is it one?")
    for place, layer in layers.items():
        check(path, place, layer)
    put_alphas(path, layers, said)
    refuse_widths(path, layers)
    return LoRA(path, shown(given), strength, layers)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A file's tensors; an alpha may be a number."""
    try:
        content = read_any(path)
    except FzError as error:
        raise FzError(f"lora: {error}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise FzError(
            f"lora: {path} holds {'nothing' if content == {} else type(content).__name__}. {ONLY}; is it one?"
        )
    if "string_to_param" in content:
        raise FzError(f"lora: {path} is a textual inversion. Pass it with --embedding.")
    state = {}
    for key, value in content.items():
        if str(key).endswith(".alpha") and isinstance(value, (int, float)):
            value = torch.tensor(float(value))
        if not isinstance(value, Tensor):
            raise FzError(f"lora: {path} has no tensor under {str(key)[:80]!r}. {ONLY}; is it one?")
        state[str(key)] = value
    return state


def refuse_others(path: Path, state: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Raise FzError for what is something else, saying what."""
    keys = list(state)
    for part, what in OTHER_KINDS:
        if any(part in key for key in keys):
            raise FzError(f"lora: {path} is {what}, which is not read. {ONLY}; merge it by the tool that made it.")
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")) for key in keys):
        raise FzError(f"lora: {path} is a whole checkpoint, or a part of one. Pass it with --checkpoint.")
    if any(key.endswith((".diff", ".diff_b")) for key in keys):
        raise FzError(f"lora: {path} has full differences of weights in it, which are not read. {ONLY}.")
    base = str(said.get("ss_base_model_version", ""))
    model = next((m for sign, m in OTHER_BASES if base.startswith(sign)), None)
    model = model or next((m for part, m in OTHER_NAMES if any(part.search(key) for key in keys)), None)
    if model:
        raise FzError(f"lora: {path} is for {model}. {ONLY}; use one that was trained for it.")
    if "emb_params" in keys:
        raise FzError(f"lora: {path} is a textual inversion. Pass it with --embedding.")
    if not any(KEY.fullmatch(key) for key in keys):
        what = other_model(keys)
        raise FzError(f"lora: {path} is {what or f'no LoRA (it has {some(sorted(keys))})'}. {ONLY}.")


def refuse_widths(path: Path, layers: Mapping[tuple[str, str], Layer]) -> None:
    """Raise FzError for a LoRA whose layers read another model's text."""
    for (part, name), layer in layers.items():
        reads_text = name.endswith(("attn2_to_k", "attn2_to_v")) or (part == "text" and name.endswith("q_proj"))
        if reads_text and (model := OTHER_WIDTHS.get(layer.down.shape[1])):
            raise FzError(
                f"lora: {path} is for {model} (its text is {layer.down.shape[1]} wide). {ONLY}; use one that was "
                "trained for it."
            )


def place_of(module: str) -> tuple[str, str]:
    """('unet' or 'text', name with '_' for '.') of a layer by any of the names that files have for it."""
    name = module.removeprefix("base_model.model.")
    part = "text" if name.startswith(("text_model.", "encoder.layers.")) else "unet"
    if prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name, part = name.removeprefix(prefix), PREFIXES[prefix]
    name = name.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    if part == "text":
        # diffusers first wrote the text encoder's attention by the UNet's names
        return part, re.sub(r"(_self_attn)_to_(q|k|v|out)$", r"\1_\2_proj", name)
    return part, name + ("_0" if name.endswith("_to_out") else "")


def alpha_of(path: Path, key: str, tensor: Tensor) -> float:
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not abs(value) <= LARGEST:
        raise FzError(f"lora: {path}: {key} is {shape(tensor)} of {value}, expected one number. Save it again.")
    return value


def check(path: Path, place: tuple[str, str], layer: Layer) -> None:
    """Raise FzError for a layer without one of its halves, or whose halves do not fit."""
    name = place[1]
    lacking = [half for half in ("up", "down") if getattr(layer, half) is None]
    if lacking:
        raise FzError(f"lora: {path} has no {' and no '.join(lacking)} for {name}. Expected both; is it cut short?")
    for half in ("up", "down", "mid"):
        t = getattr(layer, half)
        if t is None:
            continue
        if t.ndim not in (2, 4) or not t.is_floating_point() or 0 in t.shape:
            got = f"{shape(t)} {str(t.dtype).removeprefix('torch.')}"
            raise FzError(f"lora: {path}: the {half} of {name} is {got}, expected a matrix or a convolution's weights.")
        # float: not every type of 8 bits is asked
        if not t.float().isfinite().all():
            raise FzError(f"lora: {path}: the {half} of {name} has NaN or infinity in it. Download it again.")
    up, down, mid = layer.up, layer.down, layer.mid
    between = [up.shape[1], *(mid.shape[:2] if mid is not None else ()), down.shape[0]]
    point = (up,) if mid is None else (up, down)
    fits = (
        between[0] == between[1]
        and between[-1] == between[-2]
        and all(t.ndim == 2 or t.shape[2:] == (1, 1) for t in point)
    )
    if not fits or (mid is not None and mid.ndim != 4):
        got = ", ".join(f"{half} {shape(t)}" for half, t in (("up", up), ("mid", mid), ("down", down)) if t is not None)
        raise FzError(f"lora: {path}: the halves of {name} do not fit ({got}). Expected one rank; download it again.")


def shape(t: Tensor) -> str:
    return "×".join(map(str, t.shape)) or "a number"


def put_alphas(path: Path, layers: Mapping[tuple[str, str], Layer], said: Mapping[str, str]) -> None:
    """Give layers without an alpha of their own the one that PEFT keeps elsewhere: in the file's description, or in
    adapter_config.json beside it.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    if "lora_adapter_metadata" in said:
        try:
            flat = json.loads(said["lora_adapter_metadata"])
            for part, prefix in (("unet", "unet."), ("text", "text_encoder.")):
                configs[part] = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        except (ValueError, AttributeError, RecursionError):
            raise FzError(f"lora: {path}: its lora_adapter_metadata is no JSON object. Download it again.") from None
    of_adapter = beside("lora", path)
    if of_adapter is not None and of_adapter.is_file():
        configs = dict.fromkeys(("unet", "text"), read_json(of_adapter))
    for (part, name), layer in layers.items():
        config = configs.get(part) or {}
        if layer.alpha is not None or config.get("lora_alpha") is None:
            continue
        if config.get("use_dora"):
            raise FzError(f"lora: {path} is a DoRA, which is not read. {ONLY}; merge it by the tool that made it.")
        patterns = config.get("alpha_pattern") or {}
        own = (
            [v for k, v in patterns.items() if f"_{name}".endswith(f"_{place_of(k)[1]}")]
            if isinstance(patterns, Mapping)
            else []
        )
        alpha = own[0] if own else config["lora_alpha"]
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= LARGEST:
            raise FzError(f"lora: {path}: its lora_alpha is {str(alpha)[:40]!r}, expected a number. Save it again.")
        layer.alpha = float(alpha) * (layer.rank**0.5 if config.get("use_rslora") else 1)
