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
from fz.prompts.text import TextEncoder
from fz.settings.config import Settings
from fz.settings.place import expanded
from fz.weights.changes import Changes, read_words, tokens_of
from fz.weights.clip import load_clip
from fz.weights.hub import OF_TOKENIZER, TOKENIZER_OF_CHECKPOINT, located
from fz.weights.load import Checkpoint, load_checkpoint, load_tokenizer
from fz.weights.source import find_tokenizer


def settled(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with the dtype that 'auto' means on their device, and what to tell of it. Raises FzError for a
    device that this machine does not have.
    """
    dtype, line = settle_dtype(settings.dtype, pick_device(settings.device))
    return dataclasses.replace(settings, dtype=dtype), [line] if line else []


def load(settings: Settings, device: torch.device) -> Checkpoint:
    """The settings' checkpoint, or the miniature, on its device, in its dtype, laid out for speed."""
    checkpoint = load_checkpoint(
        settings.checkpoint or mini.checkpoint(),
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


def text_of(settings: Settings) -> TextEncoder:
    """A TextEncoder of the checkpoint's tokenizer and the learned words alone: it has tokens of prompts, no
    embeddings.
    """
    words = read_words(settings.embedding)
    checkpoint, config = settings.checkpoint or mini.checkpoint(), settings.model_config
    if settings.tokenizer:
        found = find_tokenizer(located(settings.tokenizer, "tokenizer", OF_TOKENIZER))
    else:
        # of a Hub name no more than the tokenizer is fetched
        folder = located(checkpoint, "checkpoint", TOKENIZER_OF_CHECKPOINT)
        found = find_tokenizer(
            None, None if folder.is_file() else folder, expanded(config, "model_config") if config else None
        )
    tokenizer = load_tokenizer(found, 2**31)
    return TextEncoder(tokenizer, None, tokens_of(words, len(tokenizer)))


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
    if path is None and miniature:
        path = mini.clip()
    return load_clip(path, tokenizer) if path not in (None, "none") else None
