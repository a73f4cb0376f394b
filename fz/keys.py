"""What do an inversion's latents, and an edit of it, depend on? Hashes by which they are found again."""

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fz
from fz import kernels
from fz.control import parts_of
from fz.ddim import CLEAN
from fz.memory.inversions import digest, model_digest
from fz.model import fast_cpu
from fz.prompts.plan import Plan
from fz.settings.config import Settings

if TYPE_CHECKING:
    from fz.inverted import InvertedClip


def key_of_inversion(inversion: "InvertedClip") -> str:
    """Of all that the inverted latents depend on."""
    editor, settings, schedule = inversion.editor, inversion.settings, inversion.schedule
    unet, device = editor.checkpoint.unet, editor.device
    times = (CLEAN, *schedule.timesteps)
    return digest(
        inversion.video.frames,
        inversion.source.embedding,
        # heads, groups and the like, which no weight shows
        unet.config,
        editor.checkpoint.vae.config,
        model_digest(unet),
        model_digest(editor.checkpoint.vae),
        [schedule.timesteps, [schedule.alpha_bar(t) for t in times]],
        dataclasses.asdict(editor.frame_index),
        [
            settings.clip_norm,
            settings.chunk,
            settings.dtype,
            str(device),
            settings.compile,
            settings.reuse,
            settings.weights,
        ],
        [kernels.choose(device), fast_cpu.signature(inversion.model.unet), torch.get_num_threads()],
        [fz.__version__, torch.__version__],
        *parts_of(inversion.inverting.control),
        *([["solver", settings.solver]] if settings.solver != "ddim" else []),
        # the frames' split shows in the last digits
        *([["processes", editor.ranks.world]] if editor.ranks.world > 1 else []),
    )


def key_of_edit(inversion: "InvertedClip", settings: Settings, plan: Plan, target: Tensor, negative: Tensor) -> str:
    """Of all that an edit of this inversion depends on. target, negative: embeddings."""
    return digest(
        settings.method,
        target,
        negative,
        [settings.guidance, settings.guidance_window, settings.strength, settings.seed],
        settings.attention,
        inversion.editor.embed(settings.reconstruction_prompt or settings.source),
        # queries and keys that are computed again are exact, those kept have the store's dtype
        settings.store_dtype if inversion.mode != "recompute" else "same",
        plan.fusion,
        plan.region,
        *parts_of(inversion.model.control),
    )
