"""Plug-and-play diffusion features (Tumanyan et al. 2022, arXiv 2211.12572) on the inflated model.

The inverted source runs beside the edit; for the first steps the edit takes the source's residual in one ResNet block
of the decoder, and the source's queries and keys in the self-attention of the decoder's layers from that block on. No
words, no masks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fz import kernels
from fz.ddim import Schedule, ddim_step
from fz.edit import Source, Watch, branch_prompts, guide, ignore
from fz.frames import FrameIndex, frame_table
from fz.fusion import Plain
from fz.model.layers import Operands, ResnetBlock, Site, TextContext
from fz.model.unet import UNet

FEATURES_UNTIL, ATTENTION_UNTIL = 0.8, 0.5  # shares of the steps, as published
BLOCK, LAYER = 1, 1  # up_blocks.1.resnets.1: Stable Diffusion's decoder layer 4


@torch.no_grad()
def pnp(
    unet: UNet,
    source: Source,
    target: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    frame_index: FrameIndex,
    features_until: float = FEATURES_UNTIL,
    attention_until: float = ATTENTION_UNTIL,
    watch: Watch = ignore,
) -> Tensor:
    """z_0 (F, 4, h, w) of the target prompt; target, negative: (77, Cx). source: an inversion; its latent at t is seen
    at t.
    """
    prompts = torch.cat([source.embedding[None], branch_prompts(negative, target, guidance)])
    text, sites = TextContext(prompts), injected_sites(unet)
    z = source.latents[schedule.timesteps[0]]
    for k, t, t_prev in schedule.downward():
        attend = Injected(frame_index, sites) if k < int(attention_until * schedule.steps) else Plain(frame_index)
        alter = (
            InjectedResidual(injected_block(unet), len(prompts)) if k < int(features_until * schedule.steps) else None
        )
        batch = torch.stack([source.latents[t], *[z] * (len(prompts) - 1)])
        eps = guide(unet(batch, t, text, attend, alter)[1:], guidance)
        z = ddim_step(z, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
        watch(k + 1, z)
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

    frame_index: FrameIndex
    sites: frozenset[str]

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.name not in self.sites:
            return Plain(self.frame_index)(site, x)
        source = slice(0, 1)
        q, k = (o.expand(x.shape[0], *o.shape[1:]) for o in (x.q(source), x.k(source)))
        return kernels.self_attention(q, k, x.v(), frame_table(self.frame_index, site, x))


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
