"""SDEdit (Meng et al. 2021, arXiv 2108.01073), frame by frame: noise a frame part of the way, denoise it under the
target.

Each frame is a clip of its own: no frame sees another, and nothing is inverted. The frames of a clip are the branches
of one batch.
"""

import torch
from torch import Tensor

from fz.ddim import Schedule, ddim_step
from fz.edit import Watch, branch_prompts, guide, ignore
from fz.model.layers import TextContext
from fz.model.unet import UNet


@torch.no_grad()
def sdedit(
    unet: UNet,
    z_0: Tensor,
    target: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    strength: float,
    seed: int,
    watch: Watch = ignore,
) -> Tensor:
    """z_0 of the edit, (F, 4, h, w). strength: the share of the T steps that are noised and denoised, at least one
    step.

    target, negative: (77, Cx). watch is called for every step of T; for those that are not done, with the noised
    latent.
    """
    frames = len(z_0)
    first = schedule.steps - max(1, round(strength * schedule.steps))
    z = add_noise(z_0, schedule.alpha_bar(schedule.timesteps[first]), seed)
    prompts = branch_prompts(negative, target, guidance)
    # branch 0's frames, then branch 1's: one prompt for each
    text = TextContext(prompts.repeat_interleave(frames, 0))
    for k, t, t_prev in schedule.downward():
        if k >= first:
            batch = z.repeat(len(prompts), 1, 1, 1)[:, None]
            eps = unet(batch, t, text)[:, 0].unflatten(0, (-1, frames))
            z = ddim_step(z, guide(eps, guidance), schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
        watch(k + 1, z)
    return z


def add_noise(z_0: Tensor, alpha_bar: float, seed: int) -> Tensor:
    """√ᾱ z_0 + √(1 - ᾱ) noise. A frame's noise depends on the seed and its number, not on device or length of the
    clip.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(z_0.shape[1:], generator=generator) for _ in z_0]).to(z_0)
    return alpha_bar**0.5 * z_0 + (1 - alpha_bar) ** 0.5 * noise
