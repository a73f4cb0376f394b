"""CLIP checkpoints to `fz.model.clip_vision.ClipModel`: transformers' layout (a folder) and the original state
dict (a file with `visual.*` names).

Names of both are translated to transformers' by one table. A Hub name is found or fetched by `hub.py`. No code of a
file is run, so OpenAI's own .pt files, which are programs, are refused with the way to convert them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fz.errors import FzError, suggest
from fz.model.clip_text import TextConfig, TextTower
from fz.model.clip_vision import ClipModel, ImageTower, Preprocess, ViTConfig
from fz.weights.architecture import numbers, short, whole_numbers
from fz.weights.hub import located
from fz.weights.layouts import some
from fz.weights.load import TEXT_FIELDS, fill, load_tokenizer
from fz.weights.names import parsed, shown
from fz.weights.needed import OF_CLIP, OF_TOKENIZER
from fz.weights.read import read_json, read_weights
from fz.weights.texts import refuse_gone
from fz.weights.tokenizer import find_tokenizer, has_vocabulary

ACTIVATIONS = ("quick_gelu", "gelu")
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
VISION_FIELDS = tuple(ViTConfig.__dataclass_fields__)
JIT = "import torch; torch.save(torch.jit.load('ViT-B-32.pt', 'cpu').state_dict(), 'clip.pt')"

# the original state dict's names -> transformers'; the layers' names come after, within both towers
TOWERS = {
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.conv1\.weight$": "vision_model.embeddings.patch_embedding.weight",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
}
LAYER = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.": ".self_attn.",
}
IGNORED = ("logit_scale", "input_resolution", "context_length", "vocab_size")


def load_clip(path: str | Path, tokenizer: str | Path | None = None) -> ClipModel:
    """Load CLIP from a transformers folder (config.json, weights, tokenizer), a file that holds the original state
    dict, or a Hub name.

    tokenizer: folder or Hub name of CLIP's vocabulary, for a checkpoint that has none. Raises FzError, in one line, for
    anything else.
    """
    name, path = clip_name(path), located(path, "clip", OF_CLIP)
    file = weight_file(path) if path.is_dir() else path
    try:
        state = read_weights(file).tensors
    except FzError as error:
        if "TorchScript" in str(error):
            raise FzError(
                f'clip: {path} is OpenAI\'s TorchScript program, which is not run. If you trust it: python -c "{JIT}"'
            ) from None
        raise
    state = {key: t for key, t in state.items() if key not in IGNORED and not key.endswith("position_ids")}
    if "visual.conv1.weight" in state:
        vision, text = original_shape(state, path)
        state = translate(state)
    elif "vision_model.embeddings.class_embedding" in state and path.is_dir():
        vision, text = folder_shape(read_json(path / "config.json"), path / "config.json")
    else:
        want = "visual.conv1.weight, or vision_model.* in a folder with config.json"
        raise FzError(f"clip: {path} has names such as {some(sorted(state))}, expected {want}. Is it CLIP with a ViT?")
    tower, text_model = ImageTower(ViTConfig(**vision)), text_tower(text, vision["projection_dim"])
    names = "Expected CLIP with a ViT, by OpenAI's or transformers' names."
    fill(tower, {k: t for k, t in state.items() if k.startswith("vis")}, f"clip: {path}", names)
    fill(text_model, {k: t for k, t in state.items() if k.startswith("text")}, f"clip: {path}", names)
    own = path if path.is_dir() and has_vocabulary(path) else None
    vocabulary = find_tokenizer(
        located(tokenizer, "tokenizer", OF_TOKENIZER) if tokenizer else own, path if path.is_dir() else path.parent
    )
    words = load_tokenizer(vocabulary, text_model.config.vocab_size)
    return ClipModel(tower, text_model, words, preprocessing(path, tower.config), name)


def clip_name(path: str | Path) -> str:
    """What tables call the CLIP at a path: its Hub name, or the name of its folder or file."""
    if parsed(str(path)) is None:
        located(path, "clip", OF_CLIP)
    return shown(path)


def weight_file(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    refuse_gone(folder, FILES)
    raise FzError(f"clip: {folder} has none of {', '.join(FILES)}. Expected CLIP in transformers' layout.")


def folder_shape(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of both towers; a config leaves out those that are CLIP's defaults."""
    vision, text = (
        {**mapping(config, f"{tower}_config_dict", path), **mapping(config, f"{tower}_config", path)}
        for tower in ("vision", "text")
    )
    projection = config.get("projection_dim", vision.get("projection_dim", 512))
    counts = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    )
    for where, part in (("vision_config", vision), ("text_config", text)):
        whole_numbers(part, (*counts, "vocab_size", "max_position_embeddings"), f"{path}: {where}")
        numbers(part, {"layer_norm_eps": (1e-12, 1)}, f"{path}: {where}")
        if part.get("hidden_act", "gelu") not in ACTIVATIONS:
            got = f"{path}: hidden_act is {short(part['hidden_act'])}, expected {' or '.join(ACTIVATIONS)}."
            raise FzError(f"{got}{suggest(short(part['hidden_act']), ACTIVATIONS)}")
        if part.get("hidden_size", 64) % part.get("num_attention_heads", 1):
            raise FzError(f"{path}: {where}: hidden_size is not a multiple of num_attention_heads.")
    whole_numbers({"projection_dim": projection}, ("projection_dim",), path)
    return {**{n: vision[n] for n in VISION_FIELDS if n in vision}, "projection_dim": projection}, text


def mapping(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise FzError(f"{path}: {name} is {short(found)}, expected an object. Is it CLIP's config.json?")
    return found


def original_shape(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, read off the tensors' shapes; heads are 64 wide in every CLIP of OpenAI's."""
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        length, text_width = state["positional_embedding"].shape
        vision = {
            "hidden_size": width,
            "intermediate_size": len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": layers(state, "visual.transformer.resblocks."),
            "num_attention_heads": max(1, width // 64),
            "image_size": side * patch,
            "patch_size": patch,
            "projection_dim": state["visual.proj"].shape[1],
        }
        text = {
            "vocab_size": len(state["token_embedding.weight"]),
            "hidden_size": text_width,
            "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": layers(state, "transformer.resblocks."),
            "num_attention_heads": max(1, text_width // 64),
            "max_position_embeddings": length,
            "bos_token_id": len(state["token_embedding.weight"]) - 2,
            "eos_token_id": len(state["token_embedding.weight"]) - 1,
        }
    except (KeyError, ValueError) as error:
        raise FzError(
            f"clip: {path} lacks {error}, expected a whole state dict of OpenAI's CLIP with a ViT. Download it again."
        ) from None
    return vision, text


def layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(found[1]) for key in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", key)))


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original state dict under transformers' names: fused q, k, v are cut apart, projections turned over."""
    out = {}
    for key, t in state.items():
        if key in ("visual.proj", "text_projection"):
            out["visual_projection.weight" if key == "visual.proj" else "text_projection.weight"] = t.T
            continue
        name = key
        for pattern, replacement in TOWERS.items():
            name = re.sub(pattern, replacement, name)
        for part, replacement in LAYER.items():
            name = name.replace(part, replacement)
        if found := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
            for letter, third in zip("qkv", t.chunk(3), strict=True):
                out[f"{found[1]}.{letter}_proj.{found[2]}"] = third
        else:
            out[name] = t
    return out


def text_tower(config: Mapping[str, Any], projection: int) -> TextTower:
    return TextTower(TextConfig(**{n: config[n] for n in TEXT_FIELDS if n in config}, projection_dim=projection))


def preprocessing(path: Path, config: ViTConfig) -> Preprocess:
    """CLIP's own, with the mean and deviation of preprocessor_config.json where a folder has one."""
    file = path / "preprocessor_config.json"
    content = read_json(file) if path.is_dir() and file.is_file() else {}
    default = Preprocess(config.image_size)
    found = [content.get(f"image_{name}") or getattr(default, name) for name in ("mean", "std")]
    mean, std = (tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in found)
    sound = all(isinstance(x, (int, float)) and not isinstance(x, bool) and -1e6 < x < 1e6 for x in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not sound or 0 in std:
        raise FzError(
            f"{file}: got image_mean {short(found[0])}, image_std {short(found[1])}; expected three numbers each, "
            "deviations not 0."
        )
    return Preprocess(config.image_size, mean, std)
