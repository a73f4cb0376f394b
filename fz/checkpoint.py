"""From what settings name to models: which checkpoint, on which device and in which dtype, attending to which frames,
and which CLIP judges the results.

How files become models is `fz.weights`' question.
"""

import dataclasses
from collections.abc import Callable

import torch

from fz import mini
from fz.frames import FrameIndex
from fz.memory.machine import pick_device, settle_dtype
from fz.model.clip_vision import ClipModel
from fz.model.control import ControlNet
from fz.settings.config import Settings
from fz.weights.changes import Changes
from fz.weights.clip import load_clip
from fz.weights.control import check_beside, load_control
from fz.weights.load import Checkpoint, load_checkpoint


def settled(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with the dtype that 'auto' means on their device, and what to tell of it. Raises FzError for a
    device that this machine does not have.
    """
    dtype, line = settle_dtype(settings.dtype, pick_device(settings.device))
    return dataclasses.replace(settings, dtype=dtype), [line] if line else []


def load(settings: Settings, device: torch.device) -> Checkpoint:
    """The settings' checkpoint, or the miniature, on its device, in its dtype, laid out for speed."""
    checkpoint = load_checkpoint(
        mini.checkpoint(settings.checkpoint),
        vae=settings.vae,
        tokenizer=settings.tokenizer,
        model_config=settings.model_config,
        ema=settings.ema,
        changes=Changes(settings.lora, settings.embedding, settings.clip_skip),
    )
    dtype = getattr(torch, settings.dtype)
    # offloaded models come to the device when they are used
    home = torch.device("cpu") if settings.offload else device
    checkpoint.unet.to(home, dtype, memory_format=torch.channels_last)
    checkpoint.unet.clip_norm = settings.clip_norm
    # fp16 VAEs overflow on some checkpoints: bfloat16 has float32's range
    checkpoint.vae.to(home, torch.bfloat16 if dtype == torch.float16 else dtype, memory_format=torch.channels_last)
    return checkpoint


def load_beside(settings: Settings) -> ControlNet | None:
    """The settings' ControlNet, if there is one. Raises FzError for a file that is none."""
    return load_control(settings.control) if settings.control is not None else None


def place(control: ControlNet, checkpoint: Checkpoint, settings: Settings, device: torch.device) -> ControlNet:
    """The ControlNet where the checkpoint is and as it is. Raises FzError for one of another model."""
    check_beside(control, checkpoint.unet.config, checkpoint.vae.config.stride)
    control.to(
        torch.device("cpu") if settings.offload else device,
        getattr(torch, settings.dtype),
        memory_format=torch.channels_last,
    )
    control.clip_norm = settings.clip_norm
    return control


def choose_frame_index(settings: Settings, tuned: bool, note: Callable[[str], None]) -> FrameIndex:
    """The paper's [own, mid] for an untuned checkpoint, Tune-A-Video's [-1, first] for a tuned one, unless the settings
    say.
    """
    entries = settings.frame_index
    if entries is None:
        entries = (-1, "first") if tuned else (0, "mid")
        note(f"frames attend to {list(entries)}: the usual for {'a tuned' if tuned else 'an untuned'} checkpoint")
    return FrameIndex(entries, settings.least_channels)


def choose_clip(path: str | None, tokenizer: str | None = None, miniature: bool = True) -> ClipModel | None:
    """The CLIP at path; None for 'none'. Without a path the miniature's, where the pictures are of its world, which is
    all it knows.
    """
    path = clip_path(path, miniature)
    return None if path is None else load_clip(path, tokenizer)


def clip_path(path: str | None, miniature: bool) -> str | None:
    """Of the CLIP that `choose_clip` loads, or None."""
    if path is None:
        return mini.clip() if miniature else None
    return None if path == "none" else path
