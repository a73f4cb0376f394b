"""SDEdit (Meng et al. 2021, arXiv 2108.01073), frame by frame: noise a frame part of the way, denoise it under the
target.

Each frame is a clip of its own: no frame sees another, and nothing is inverted. The frames of a clip are the branches
of one batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fz.ddim import CLEAN, ddim_step
from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, ignore
from fz.guidance import Guidance, guided
from fz.model.layers import TextContext
from fz.model.unet import own_frame
from fz.source import Source


@dataclass(frozen=True)
class SDEdit:
    """strength: the share of the T steps that are noised and denoised, at least one step. seed: of the noise."""

    strength: float = 0.75
    seed: int = 0

    @torch.no_grad()
    def __call__(
        self, model: Denoiser, source: Source, task: Edit, guidance: Guidance, callback: Callback = ignore
    ) -> Tensor:
        """z_0 of the edit, (F, 4, h, w). Of the source only its z_0 counts, of the task its prompt, of the guidance
        not its window.

        callback is called for every step of T; for those that are not done, with the noised latent.
        """
        schedule, z_0 = model.schedule, source.latents[CLEAN]
        first = schedule.steps - max(1, round(self.strength * schedule.steps))
        z = add_noise(z_0, schedule.alpha_bar(schedule.timesteps[first]), self.seed)
        prompts = guidance.prompts(task.prompt)
        # branch 0's frames, then branch 1's: one prompt for each
        text = TextContext(prompts.repeat_interleave(len(z), 0))
        for k, t, t_prev in schedule.downward():
            if k >= first:
                eps = model(z.repeat(len(prompts), 1, 1, 1)[:, None], t, text, own_frame)
                eps = guided(eps[:, 0].unflatten(0, (len(prompts), -1)), guidance.scale)
                z = ddim_step(z, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
            callback(k + 1, z)
        return z


def add_noise(z_0: Tensor, alpha_bar: float, seed: int) -> Tensor:
    """√ᾱ z_0 + √(1 - ᾱ) noise. A frame's noise depends on the seed and its number, not on device or length of the
    clip.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(z_0.shape[1:], generator=generator) for _ in z_0]).to(z_0)
    return alpha_bar**0.5 * z_0 + (1 - alpha_bar) ** 0.5 * noise
