"""What does a released tuning YAML ask for? Settings of a tuning, and a line for each value that asks for what fz does
otherwise.

What training means by its names is train_tune_a_video.py's and ddpm_trainer.py's. Nothing here imports torch.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings import released, tree
from fz.settings.config import ClipSettings
from fz.settings.convert import number, shown, truth, whole

# what tuning reads beside what editing does: their names -> settings
OF_TUNING = {
    "train_steps": "steps",
    "learning_rate": "rate",
    "seed": "seed",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "recompute",
    "mixed_precision": "dtype",
    "checkpointing_steps": "save_every",
    "validation_steps": "sample_every",
    "model_config.lora": "rank",
    "dataset_config.class_data_root": "class_images",
    "dataset_config.class_data_prompt": "class_prompt",
}
# of a file that lacks them
STEPS, RATE = 300, 3e-5
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}
# the others are whole numbers
KINDS = {"rate": float, "class_images": str, "class_prompt": str, "recompute": bool}
EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
# what fz has of the rest that changes training, and what to say where a config has something else
OURS = {
    "lr_scheduler": ("constant", "the rate is constant"),
    "lr_warmup_steps": (0, "the rate is constant"),
    "train_batch_size": (1, "a step has one clip, and gradient_accumulation_steps draws of noise"),
    "scale_lr": (False, "the rate is learning_rate itself"),
    "use_8bit_adam": (False, "AdamW's averages have 32 bits"),
    "adam_beta1": (0.9, "it is 0.9"),
    "adam_beta2": (0.999, "it is 0.999"),
    "adam_weight_decay": (1e-2, "it is 0.01"),
    "adam_epsilon": (1e-8, "it is 1e-8"),
    "max_grad_norm": (1, "gradients are clipped to a norm of 1"),
    "prior_preservation": (0, "a distance to the untuned UNet is no part of the loss"),
    "model_config.SparseCausalAttention_index": (
        [-1, "first"],
        "a frame attends to the one before it and the first, a LoRA's picture to itself",
    ),
    "model_config.least_sc_channel": (0, "layers of any width attend alike"),
    "trainer_pipeline_config.target": ("DDPMTrainer", "the loss is DDPMTrainer's"),
}


def of_yaml(content: tree.Tree, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """A released config's settings: the clip as editing reads it, and OF_TUNING. given: what flags say, over it. Class
    images that are not there are left out, and said.
    """
    overlay, config = released.translate(content).overlay, tree.Config(content)
    found = {k: v for k, v in overlay.items() if k.startswith("clip.") or k in ("checkpoint", "out")}
    found |= {
        ours: overlay[theirs]
        for ours, theirs in (("prompt", "source"), ("sample_steps", "steps"), ("guidance", "guidance"))
        if theirs in overlay
    }
    # what is edited may be called otherwise
    if (prompt := config.get("dataset_config.prompt")) is not None:
        found["prompt"] = str(prompt)
    # as the edits are numbered
    targets = [(int(k.split(".")[1]), v) for k, v in overlay.items() if re.fullmatch(r"edits\.\d+\.target", k)]
    found["sample_prompts"] = tuple(target for _, target in sorted(targets))
    for name, setting in OF_TUNING.items():
        value = config.get(name)
        if value is not None:
            found[setting] = checked(name, setting, value)
    found["recipe"] = recipe_of(config, given)
    put_kinds(found, given, notes)
    notes.extend(done_otherwise(config))
    return found


def recipe_of(config: tree.Config, given: Mapping[str, Any]) -> str:
    """What the released code trains beside queries and temporal attention. Raises FzError for whole convolutions."""
    name = "train_temporal_conv"
    value = config.get(name)
    if value is None or not truth(value, name):
        return "tune-a-video"
    if config.get("model_config.lora") is None and not given.keys() & {"recipe", "lora_rank"}:
        raise FzError(
            f"{name}: got True without model_config.lora, which trains whole convolutions over time; expected low-rank "
            "ones. Pass --set model_config.lora=160, or --recipe tune-a-video."
        )
    return "fatezero"


def put_kinds(found: dict[str, Any], given: Mapping[str, Any], notes: list[str]) -> None:
    """The class images are what is there, under their own prompt or the clip's."""
    if "class_images" in given:
        return
    folder = found.get("class_images")
    if folder and Path(folder).is_dir():
        if "prompt" in found:
            found.setdefault("class_prompt", found["prompt"])
        return
    if folder:
        notes.append(f"class images: {folder} is not there; tuned without them")
    found.pop("class_images", None), found.pop("class_prompt", None)


def done_otherwise(config: tree.Config) -> Iterator[str]:
    """A line for each value that would change training, and does not here. Raises FzError for one of another kind."""
    counts = (config.get(name) for name in ("gradient_accumulation_steps", "train_batch_size"))
    # what these change nothing with, in the released code either
    without = {
        "lr_warmup_steps": config.get("lr_scheduler") in (None, "constant"),
        "scale_lr": all(count in (None, 1) for count in counts),
    }
    for name, (ours, what) in OURS.items():
        value = config.get(name)
        if value is not None and not is_same(value, ours, name) and not without.get(name):
            yield f"{name}: {shown(value)} counts for nothing here; {what}"


def is_same(value: Any, ours: Any, name: str) -> bool:
    if isinstance(ours, bool):
        return truth(value, name) == ours
    if isinstance(ours, (int, float)):
        return number(value, name) == ours
    return value == ours or (isinstance(value, str) and value.rpartition(".")[2] == ours)


def windows_note(content: tree.Tree, clip: ClipSettings, count: int) -> str | None:
    """What to say of a clip of `count` pictures in which `stride` leaves room for several windows."""
    stride = tree.Config(content).get("dataset_config.stride")
    if stride is None or clip.frames is None:
        return None
    left = count - (clip.frames - 1) * clip.every - 1
    windows = left // max(1, whole(stride, "dataset_config.stride")) + 1
    if windows < 2:
        return None
    return (
        f"dataset_config.stride: {stride} makes {windows} windows of {clip.path}, which the released training refuses; "
        "the first is learned"
    )


def checked(name: str, setting: str, value: Any) -> Any:
    """A YAML's value as the setting's kind. Raises FzError."""
    if setting == "dtype":
        precision = "no" if value is False else value  # YAML reads no as false
        if not isinstance(precision, str) or precision not in PRECISIONS:
            raise FzError(f"{name}: got {value!r}, expected one of fp16, bf16, no.")
        return PRECISIONS[precision]
    kind = KINDS.get(setting, int)
    try:
        fits = isinstance(value, kind) if kind in (bool, str) else not isinstance(value, bool)
        converted = kind(value) if fits else None
        if converted is None or (kind is int and (converted != float(value) or converted < 0)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise FzError(f"{name}: got {value!r}, expected {EXPECTED[kind]}.") from None
    return converted
