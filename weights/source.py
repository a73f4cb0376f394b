"""Where a checkpoint's parts are: a diffusers folder or a CompVis single file to (config, weights in our names) of each
part.

A VAE may come from elsewhere, a tokenizer from a folder or the Hub (`hub.py`). Building models is `load.py`'s.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fz.errors import FzError
from fz.settings import safe_yaml
from fz.settings.place import absent
from fz.weights import architecture as arch
from fz.weights import layouts
from fz.weights.architecture import MODEL_CONFIG, SD1
from fz.weights.inferred import count, infer_text, infer_unet, infer_vae
from fz.weights.layouts import some, under
from fz.weights.needed import beside
from fz.weights.read import Weights, about, read_json, read_weights
from fz.weights.sets import choose_ema, of_set, set_of
from fz.weights.texts import refuse_gone


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint. config: as in diffusers' config.json; weights: in our names; where: the file that
    config is of.
    """

    config: Mapping
    weights: Weights
    where: Path


@dataclass(frozen=True)
class RawCheckpoint:
    """A checkpoint before its models are built. kind: 'diffusers folder' and the like, for the report."""

    kind: str
    unet: Part
    vae: Part
    text: Part
    scheduler: dict


# ---- diffusers folders -------------------------------------------------------------------------------------


def from_folder(path: Path, vae: Path | None, model_config: Path | None, ema: str) -> RawCheckpoint:
    """Read a diffusers folder: unet/, vae/ (unless vae is given), text_encoder/, scheduler/. model_config: whose
    configs to use instead.
    """
    if not (path / "unet").is_dir():
        raise FzError(f"{path}: has no unet/ folder{whose_folder(path)}")
    configs = model_config or path
    used = set_of(path, ema)
    parts = {
        name: folder_part(path / name, configs / name / "config.json", layouts.weight_files(name, variant))
        for name, variant in (
            ("unet", "non_ema" if used == "plain" else None),
            ("text_encoder", None),
            *(() if vae else (("vae", None),)),
        )
    }
    unet, text = parts["unet"], parts["text_encoder"]
    unet = Part(
        unet.config, unet.weights.with_tensors(layouts.rename_parts(unet.weights.tensors, layouts.TUNED)), unet.where
    )
    text = Part(
        arch.check_text(text.config, text.where),
        text.weights.with_tensors(text_names(text.weights.tensors)),
        text.where,
    )
    if vae:
        known = path / "vae" / "config.json"
        autoencoder = separate_vae(vae, known if known.exists() else None, ema)
    else:
        autoencoder = vae_part(parts["vae"])
    return RawCheckpoint(f"diffusers folder{of_set(used)}", unet, autoencoder, text, schedule_of(configs))


def whose_folder(path: Path) -> str:
    """The end of the message about a folder without unet/: what it seems to be, and what to pass."""
    if found := snapshot_of(path):
        return f": it is a folder of the Hub's cache. Pass the snapshot in it, {found}."
    if any(path.glob("diffusion_pytorch_model*")):
        return f": it is one part of a checkpoint. Pass the folder above it, {path.parent}."
    if (path / "transformer").is_dir():
        return f", but a transformer/ (Stable Diffusion 3, Flux or later). {SD1}"
    files = sorted(p.name for p in path.glob("*") if p.suffix in (".ckpt", ".safetensors", ".pt"))
    if files:
        return f". Did you mean the file {path / files[0]}?"
    return (
        ". Expected a diffusers folder (unet/, vae/, text_encoder/, tokenizer/) or a single .ckpt or .safetensors file."
    )


def snapshot_of(path: Path) -> Path | None:
    """The newest checkpoint in a repository's folder of the Hub's cache (snapshots/HASH), or in the cache itself."""
    found = [p.parent for pattern in ("snapshots/*/unet", "models--*/snapshots/*/unet") for p in path.glob(pattern)]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def folder_part(folder: Path, config: Path, names: Sequence[str]) -> Part:
    """Config and weights of one part, as they are in the files. names: of the weights, best first."""
    if not folder.is_dir():
        raise FzError(f"{folder}: no such folder. Expected a diffusers folder with unet/, vae/ and text_encoder/.")
    file = next((folder / n for n in names if (folder / n).exists()), None)
    if file is None:
        refuse_gone(folder, names)
        there = some(sorted(p.name for p in folder.glob("*"))) or "nothing"
        raise FzError(
            f"{folder}: has no weights (there: {there}). Expected {names[0]}, a .bin, an fp16 variant or shards "
            "with an index."
        )
    return Part(read_json(config), read_weights(file), config)


def schedule_of(folder: Path) -> dict:
    """The noise schedule that a folder names, Stable Diffusion v1's where it names none."""
    file = folder / "scheduler" / "scheduler_config.json"
    return arch.check_scheduler(read_json(file) if file.exists() else {}, file)


# ---- CompVis single files ----------------------------------------------------------------------------------


def from_single_file(path: Path, vae: Path | None, model_config: Path | None, ema: str) -> RawCheckpoint:
    """Read a .ckpt or .safetensors of the original layout. Configs are model_config's where it has them, else inferred
    from the weights.
    """
    weights = read_weights(path)
    state = weights.tensors
    if what := layouts.other_model(state):
        raise FzError(f"{path}: is {what}. {SD1}")
    if not under(state, layouts.UNET_PREFIX):
        raise FzError(f"{path}: {what_part(state)}")
    prefixes = (layouts.UNET_PREFIX, layouts.VAE_PREFIX, layouts.TEXT_PREFIX, *layouts.LEFT_OUT)
    if odd := [key for key in state if not key.startswith(prefixes)]:
        raise FzError(f"{path}: {len(odd)} keys are no part of Stable Diffusion v1 ({some(odd)}). {SD1}")

    def config(part: str) -> Path | None:
        file = model_config / part / "config.json" if model_config else None
        return file if file and file.exists() else None

    plain, used = choose_ema(state, layouts.UNET_PREFIX, "diffusion_model.", ema, path)
    where = config("unet") or path
    unet_config = read_json(where) if config("unet") else infer_unet(plain, path)
    arch.check_unet(unet_config, where)
    up_attention = tuple("CrossAttn" in kind for kind in unet_config["up_block_types"])
    table = layouts.unet_table(unet_config.get("layers_per_block", 2), up_attention)
    renamed = layouts.rename_parts(layouts.rename(plain, table, str(path)), layouts.TUNED)
    unet = Part(unet_config, weights.with_tensors(renamed), where)

    if vae:
        autoencoder = separate_vae(vae, config("vae"), ema)
    else:
        own = {k: t for k, t in under(state, layouts.VAE_PREFIX).items() if not k.startswith(("loss.", "model_ema."))}
        if not own:
            raise FzError(f"{path}: has no VAE (no {layouts.VAE_PREFIX} keys). Pass one with --vae.")
        autoencoder = vae_file(own, weights, config("vae"), path)

    text_state = text_names(under(state, layouts.TEXT_PREFIX))
    if not text_state:
        raise FzError(
            f"{path}: has no text encoder (no {layouts.TEXT_PREFIX} keys). Use a full checkpoint, not a pruned one."
        )
    where = config("text_encoder") or path
    text_config = arch.check_text(read_json(where) if config("text_encoder") else infer_text(text_state, path), where)
    text = Part(text_config, weights.with_tensors(text_state), where)

    scheduler = schedule_of(model_config) if model_config else dict(arch.SCHEDULE)
    check_betas(state, scheduler, path)
    check_prediction(path, scheduler)
    return RawCheckpoint(f"CompVis single file{of_set(used)}", unet, autoencoder, text, scheduler)


def what_part(state: Mapping[str, Tensor]) -> str:
    """The end of the message about a single file without a CompVis UNet."""
    if any(key.startswith(("first_stage_model.", "encoder.down", "decoder.up")) for key in state):
        return "is a VAE alone. Pass it with --vae, beside a whole checkpoint."
    if any(key.startswith(("down_blocks.", "time_embedding.")) for key in state):
        return "is a UNet alone, in diffusers' layout. Pass the folder that holds unet/, vae/ and text_encoder/."
    if any(key.startswith(("input_blocks.", "time_embed.")) for key in state):
        return "is a UNet alone. Expected a whole checkpoint: UNet, VAE and text encoder."
    if any("token_embedding." in key for key in state):
        return "is a text encoder alone. Expected a whole checkpoint: UNet, VAE and text encoder."
    return f"has no {layouts.UNET_PREFIX} keys (it has {some(state)}). Is it a Stable Diffusion v1.x checkpoint?"


def check_betas(state: Mapping[str, Tensor], scheduler: Mapping, path: Path) -> None:
    """Raise FzError if the file brings another noise schedule than the one that is to be used."""
    found = state.get("alphas_cumprod")
    if found is None or scheduler["beta_schedule"] != "scaled_linear":
        return
    start, end, steps = (scheduler[name] for name in ("beta_start", "beta_end", "num_train_timesteps"))
    expected = (1 - torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2).cumprod(0)
    # 2e-3: some files keep it in half precision, and some in 8 bits
    tolerance = max(2e-3, torch.finfo(found.dtype).eps / 2) if found.is_floating_point() else 0
    if found.shape != expected.shape or (found.double() - expected).abs().max() > tolerance:
        raise FzError(
            f"{path}: its alphas_cumprod is another noise schedule than v1's. Pass --model-config DIR with its "
            "scheduler/."
        )


def check_prediction(path: Path, scheduler: Mapping) -> None:
    """Raise FzError if the file, or the original config beside it, says that the model predicts something else than
    noise, or that from another schedule.
    """
    if (said := about(path).get("modelspec.prediction_type", "epsilon")).lower() != "epsilon":
        raise FzError(f"{path}: its modelspec.prediction_type is {arch.short(said)}, expected 'epsilon'. {arch.SD1}")
    config = beside("checkpoint", path)
    if config.is_file():
        arch.check_original(safe_yaml.read_file(config, what="checkpoint"), scheduler, config)


# ---- the VAE -----------------------------------------------------------------------------------------------


def separate_vae(path: Path, known: Path | None, ema: str) -> Part:
    """A VAE of its own: a diffusers folder (or one that holds vae/), or a file in either layout, with or without
    first_stage_model.

    known: the config of the VAE that it replaces, for what shapes do not tell.
    """
    if not path.exists():
        raise FzError(
            f"vae: {path} {absent(path)}. Expected a diffusers VAE folder, or a .pt, .ckpt or .safetensors file."
        )
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        return vae_part(folder_part(folder, folder / "config.json", layouts.weight_files("vae")))
    weights = read_weights(path)
    state = under(weights.tensors, layouts.VAE_PREFIX)
    if state:
        state = {key: t for key, t in state.items() if not key.startswith(("loss.", "model_ema."))}
    else:
        # 'ema' is asked of the checkpoint; most VAEs have one set
        state, used = choose_ema(weights.tensors, "", "", "plain" if ema == "plain" else "auto", path)
        weights = dataclasses.replace(weights, form=weights.form + of_set(used))
    if not any(key.startswith("decoder.") for key in state):
        what = layouts.other_model(state)
        raise FzError(
            f"vae: {path} is no VAE{f' but {what}' if what else ''} (it has {some(state)}). Expected Stable "
            "Diffusion v1's."
        )
    own = beside("vae", path)
    if own.exists() and read_json(own).get("_class_name") == "AutoencoderKL":
        known = own
    return vae_file(state, weights, known, path)


def vae_file(state: dict[str, Tensor], weights: Weights, config: Path | None, path: Path) -> Part:
    """A VAE's part from a single file's weights, in either layout."""
    if levels := count(state, "encoder.down."):
        layers = count(state, "encoder.down.0.block.")
        state = layouts.rename(state, layouts.MIXED_VAE_TABLE | layouts.vae_table(levels, layers), str(path))
    return vae_part(
        Part(
            read_json(config) if config else infer_vae(state, path),
            weights.with_tensors(state),
            config or path,
        )
    )


def vae_part(part: Part) -> Part:
    """The part with its attention in our names: older diffusers had others, and the original has 1x1 convolutions for
    linear layers.
    """
    arch.check_vae(part.config, part.where)
    state = layouts.rename(part.weights.tensors, layouts.OLD_VAE_TABLE, str(part.weights.file))
    for key, t in state.items():
        if ".attentions." in key and t.ndim == 4 and t.shape[2:] == (1, 1):
            state[key] = t.flatten(1)
    return Part(part.config, part.weights.with_tensors(state), part.where)


# ---- text --------------------------------------------------------------------------------------------------


def text_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's keys without `text_model.`, which transformers has dropped, and without what the encoder makes itself or
    has no use for.
    """
    bare = {key.removeprefix("text_model."): t for key, t in state.items()}
    return {key: t for key, t in bare.items() if key not in layouts.TEXT_LEFT_OUT}


def check_model_config(model_config: Path | None) -> None:
    if model_config and not (model_config / "unet" / "config.json").is_file():
        raise FzError(f"model_config: {model_config} has no unet/config.json. {MODEL_CONFIG}")
