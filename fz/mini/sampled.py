"""Which pictures does a checkpoint make of sentences? By plain DDIM sampling with guidance, without any editing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fz import mini
from fz.ddim import Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.model.vae import decode_clip
from fz.source import Source
from fz.weights.load import Checkpoint


@torch.no_grad()
def sample(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 50,
    guidance: float = mini.DEFAULTS["guidance"],
    size: int = mini.SIZE,
) -> Tensor:
    """One picture of each prompt, (n, 3, size, size) in [-1, 1]. Prompt i starts from the noise of seed + i, whatever
    the others are.
    """
    schedule = Schedule.from_config(checkpoint.scheduler, steps)
    model = Denoiser(checkpoint.unet, schedule, FrameIndex(()))
    guided = Guidance(checkpoint.text.encode([""])[0], guidance)
    latent = size // checkpoint.vae.config.stride
    pictures = []
    for i, embedding in enumerate(checkpoint.text.encode(prompts)):
        noise = torch.randn(1, 4, latent, latent, generator=torch.Generator().manual_seed(seed + i))
        source = Source(embedding, {schedule.timesteps[0]: noise})
        z = edit(model, source, Edit(embedding), guided)
        pictures.append(decode_clip(checkpoint.vae, z))
    return torch.cat(pictures)
