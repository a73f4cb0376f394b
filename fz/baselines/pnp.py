"""Plug-and-play diffusion features (Tumanyan et al. 2022, arXiv 2211.12572) on the inflated model.

The inverted source runs beside the edit; for the first steps the edit takes the source's residual in one ResNet block
of the decoder, and the source's queries and keys in the self-attention of the decoder's layers from that block on. No
words, no masks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fz import kernels
from fz.attention import Plain
from fz.ddim import ddim_step
from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, ignore
from fz.frames import frame_table
from fz.guidance import Guidance, guided
from fz.model.layers import Operands, ResnetBlock, Site, TextContext
from fz.model.unet import UNet
from fz.source import Source

BLOCK, LAYER = 1, 1  # up_blocks.1.resnets.1: Stable Diffusion's decoder layer 4


@dataclass(frozen=True)
class PnP:
    """features_until, attention_until: the shares of the steps for which residuals, and queries and keys, are
    injected.
    """

    features_until: float = 0.8
    attention_until: float = 0.5

    @torch.no_grad()
    def __call__(
        self, model: Denoiser, source: Source, task: Edit, guidance: Guidance, callback: Callback = ignore
    ) -> Tensor:
        """z_0 (F, 4, h, w) of the target prompt. source: an inversion; its latent at t is seen at t. Of the task its
        prompt counts, of the guidance not its window.
        """
        schedule, unet = model.schedule, model.layers
        prompts = torch.cat([source.embedding[None], guidance.prompts(task.prompt)])
        text, plain = TextContext(prompts), Plain(model.frame_index)
        injected, residual = Injected(plain, injected_sites(unet)), InjectedResidual(injected_block(unet), len(prompts))
        z = source.latents[schedule.timesteps[0]]
        for k, t, t_prev in schedule.downward():
            attend = injected if k < int(self.attention_until * schedule.steps) else plain
            alter = residual if k < int(self.features_until * schedule.steps) else None
            batch = torch.stack([source.latents[t], *[z] * (len(prompts) - 1)])
            eps = guided(model(batch, t, text, attend, alter)[1:], guidance.scale)
            z = ddim_step(z, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
            callback(k + 1, z)
        return z


def injected_block(unet: UNet) -> ResnetBlock:
    return unet.up_blocks[BLOCK].resnets[LAYER]


def injected_sites(unet: UNet) -> frozenset[str]:
    """The self-attention sites of the decoder's layers from the injected block on: up_blocks.1.attentions.1 …
    up_blocks.3.attentions.2.
    """
    names = [
        (i, j, transformer.transformer_blocks[0].attn1.site.name)
        for i, block in enumerate(unet.up_blocks)
        for j, (_, transformer) in enumerate(block.layers())
        if transformer
    ]
    return frozenset(name for i, j, name in names if (i, j) >= (BLOCK, LAYER))


@dataclass(frozen=True)
class Injected:
    """Attention whose every branch has the queries and keys of branch 0 at the given self-attention sites, and its own
    values.
    """

    plain: Plain
    sites: frozenset[str]

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.name not in self.sites:
            return self.plain(site, x)
        source = slice(0, 1)
        q, k = (o.expand(x.shape[0], *o.shape[1:]) for o in (x.q(source), x.k(source)))
        return kernels.self_attention(q, k, x.v(), frame_table(self.plain.frame_index, site, x))


@dataclass(frozen=True)
class InjectedResidual:
    """Branch 0's residual (B·F, C, H, W) for every branch, in one ResNet block of the decoder; other blocks keep
    theirs.
    """

    block: ResnetBlock
    branches: int

    def __call__(self, block: ResnetBlock, h: Tensor) -> Tensor:
        if block is not self.block:
            return h
        source = h[: len(h) // self.branches]
        return source.repeat(self.branches, 1, 1, 1).contiguous(memory_format=torch.channels_last)
