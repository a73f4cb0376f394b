"""Which names do the released FateZero configs have, which settings are they, and of what kind are their values?

They are the arguments of the official code (test_fatezero.py, train_tune_a_video.py and what they call); every one is
used, knowingly left aside, or refused, and any other name is an error.
"""

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fz.errors import FzError, suggest
from fz.settings.convert import centre, frame_index, frames, number, shown, size, text, whole
from fz.settings.tree import Names, Tree, leaves, split

P2P = "editing_config.p2p_config"
P2P_KEYS = ("cross_replace_steps", "self_replace_steps", "is_replace_controller", "eq_params.words", "eq_params.values",
            "blend_words",
            "blend_self_attention", "blend_latents", "blend_th")  # fmt: skip
IGNORED = {  # and why
    "dataset_config.stride": "windows of a long clip; tuning takes the first",
    "dataset_config.image_mode": "frames are RGB",
    "dataset_config.class_*": "regularization images of tuning",
    "editing_config.clip_length": "it is n_sample_frame",
    "editing_config.use_invertion_latents": "editing always starts from inverted latents, in the released code too",
    "editing_config.strength": "the released pipelines do not read it",
    "editing_config.sample_seeds": "DDIM with eta = 0 draws nothing",
    "editing_config.num_samples_per_prompt": "DDIM with eta = 0 draws nothing",
    "editing_config.annotate*": "how the released code captions pictures",
    "editing_config.use_make_grid": "how the released code arranges pictures",
    "editing_config.grid_column_size": "how the released code arranges pictures",
    "editing_config.subdir": "how the released code names folders",
    "editing_config.traverse_p2p_config": "no effect in the released code",
    f"{P2P}.*.use_inversion_attention": "the released code overwrites it by editing_config's",
    f"{P2P}.*.save_self_attention": "the released code overwrites it",
    f"{P2P}.*.disk_store": "maps are never stored",
    "model_config.lora": "the rank is read off the weights",
    "test_pipeline_config": "there is one pipeline",
    "trainer_pipeline_config": "of tuning",
    "disk_store": "maps are never stored",
    "verbose": "progress is shown",
    "use_invertion_latents": "editing always starts from inverted latents",
    "mixed_precision": "--dtype decides; the default is float16 on CUDA, else float32",
    "pretrained_epoch_list": "one checkpoint a run",
    "batch_size": "one clip a run",
    **dict.fromkeys(
        ("train_steps", "validation_steps", "checkpointing_steps", "train_batch_size", "learning_rate", "scale_lr",
         "lr_scheduler",
         "lr_warmup_steps", "use_8bit_adam", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
         "max_grad_norm",
         "gradient_accumulation_steps", "gradient_checkpointing", "enable_xformers", "train_temporal_conv",
         "prior_preservation"),
        "of tuning, which says what it does otherwise (`fz.tuning.released`)",
    ),
}  # fmt: skip
# of those, what counts something: 0 is a mistake wherever it stands
COUNTS = ("gradient_accumulation_steps", "train_batch_size", "batch_size", "train_steps")
REFUSED = {
    "model_config.temporal_downsample": "",
    "model_config.temporal_downsample_time": "",
}  # what would change the model


@dataclass(frozen=True)
class Row:
    """setting None: the value is checked, and that is all."""

    setting: str | None
    convert: Callable[[Any, str], Any]


TABLE = {
    "pretrained_model_path": Row("checkpoint", text),
    "seed": Row("seed", whole),
    "logdir": Row("out", text),
    "dataset_config.path": Row("clip.path", text),
    "dataset_config.n_sample_frame": Row("clip.frames", frames),
    "dataset_config.start_sample_frame": Row("clip.start", whole),
    "dataset_config.sampling_rate": Row("clip.every", whole),
    "dataset_config.image_size": Row("clip.size", size),
    "dataset_config.crop": Row(None, centre),
    "editing_config.guidance_scale": Row("guidance", number),
    "editing_config.num_inference_steps": Row("steps", whole),
    "editing_config.negative_prompt": Row("negative", text),
    "model_config.SparseCausalAttention_index": Row("frame_index", frame_index),
    "model_config.least_sc_channel": Row("least_channels", whole),
}
COMBINED = (  # read together, below
    "dataset_config.prompt", "dataset_config.offset.left", "dataset_config.offset.right", "dataset_config.offset.top",
    "dataset_config.offset.bottom", "editing_config.source_prompt", "editing_config.editing_prompts",
    "editing_config.prompt2prompt_edit",
    "editing_config.use_inversion_attention", *(f"{P2P}.*.{key}" for key in P2P_KEYS),
)  # fmt: skip
OPEN = (f"{P2P}.*.cross_replace_steps", "test_pipeline_config", "trainer_pipeline_config")  # sections of any names


# ---- names -------------------------------------------------------------------------------------------------


def check_names(tree: Tree) -> None:
    """Raises FzError for a name that the released code does not have, with the nearest, and for what is refused."""
    names = [split(name) for name in (*TABLE, *COMBINED, *IGNORED, *REFUSED)]
    for path, value in leaves(tree) if tree else ():
        name = ".".join(path)
        if name in REFUSED and value not in (None, False, 0):
            raise FzError(
                f"{name}: got {shown(value)}, which samples fewer frames in time inside the model; that is not "
                "built. Remove it."
            )
        if any(matches(path, known) for known in names) or any(
            matches(path[: len(section)], section) for section in map(split, OPEN)
        ):
            continue
        if any(len(path) < len(known) and matches(path, known[: len(path)]) for known in names):
            if value in (None, {}, []) or "${" in str(value):
                continue
            raise FzError(f"{name}: got {shown(value)}, expected a section with names of its own.")
        raise FzError(f"unknown config key {name!r}.{nearest(path, names)}")


def matches(path: Names, pattern: Names) -> bool:
    return len(path) == len(pattern) and all(map(fnmatch.fnmatchcase, path, pattern))


def nearest(path: Names, names: Iterable[Names]) -> str:
    """The nearest full name; the last part decides where the section is right."""
    # the numbers of edits are the user's
    choices = [
        tuple(path[i] if part == "*" and i < len(path) else part for i, part in enumerate(name)) for name in names
    ]
    siblings = {name[-1]: ".".join(name) for name in choices if name[:-1] == path[:-1]}
    hint = suggest(path[-1], siblings)
    for last, full in siblings.items():
        hint = hint.replace(f"'{last}'", f"'{full}'")
    return hint or suggest(".".join(path), map(".".join, choices))
