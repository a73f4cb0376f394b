"""What do an inversion's latents, and an edit of it, depend on? Hashes by which they are found again."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

import fz
from fz import kernels
from fz.control import parts_of
from fz.ddim import CLEAN
from fz.denoiser import Denoiser
from fz.loaded import Loaded
from fz.memory.inversions import digest, model_digest
from fz.model import fast_cpu, fast_vae
from fz.model.control import Control
from fz.prompts.plan import Plan
from fz.settings.config import Settings
from fz.source import Source


def key_of_inversion(loaded: Loaded, settings: Settings, frames: Tensor, embedding: Tensor, inverting: Denoiser) -> str:
    """Of all that the inverted latents depend on. frames: the clip's; embedding: of its sentence; inverting: what
    predicts noise.
    """
    unet, vae, device, schedule = loaded.checkpoint.unet, loaded.checkpoint.vae, loaded.device, inverting.schedule
    latent_size = tuple(side // vae.config.stride for side in frames.shape[-2:])
    times = (CLEAN, *schedule.timesteps)
    return digest(
        frames,
        embedding,
        # heads, groups and the like, which no weight shows
        unet.config,
        vae.config,
        model_digest(unet),
        model_digest(vae),
        [schedule.timesteps, [schedule.alpha_bar(t) for t in times]],
        dataclasses.asdict(loaded.frame_index),
        [
            settings.clip_norm,
            settings.chunk,
            settings.dtype,
            str(device),
            settings.compile,
            settings.reuse,
            settings.weights,
        ],
        [
            kernels.choose(device),
            fast_vae.takes(vae, latent_size, settings.conv),
            fast_cpu.signature(inverting.unet),
            torch.get_num_threads(),
        ],
        [fz.__version__, torch.__version__],
        *parts_of(inverting.control),
        *([["solver", settings.solver]] if settings.solver != "ddim" else []),
        # the frames' split shows in the last digits
        *([["processes", loaded.ranks.world]] if loaded.ranks.world > 1 else []),
    )


def key_of_source(source: Source) -> str:
    """Of what a pass over the source clip began and ended with: another clip, model or sentence has other latents."""
    latents = source.latents
    return digest(latents[min(latents)], latents[max(latents)])


def key_of_edit(settings: Settings, plan: Plan, embeddings: Sequence[Tensor], control: Control | None) -> str:
    """Of all that an edit of an inversion depends on. embeddings: of target, negative and reconstruction prompt."""
    target, negative, reconstruction = embeddings
    return digest(
        settings.method,
        target,
        negative,
        [settings.guidance, settings.guidance_window, settings.strength, settings.seed],
        settings.attention,
        reconstruction,
        settings.store_dtype,
        plan.fusion,
        plan.region,
        *parts_of(control),
    )
