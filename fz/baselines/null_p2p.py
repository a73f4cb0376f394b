"""Null-text optimisation (Mokady et al. 2022, arXiv 2211.09794), then prompt-to-prompt (Hertz et al. 2022), frame by
frame.

Each frame is a clip of its own: it is inverted, the unconditional embedding of each step is optimised until guided
sampling follows the inversion, and the target is sampled beside that reconstruction, whose attention it takes. Neither
masks nor latent blending. Small frames go through the UNet several at a time, and know nothing of each other.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.ddim import CLEAN, Schedule, ddim_step
from fz.edit import Source, Watch, guide, ignore, invert
from fz.frames import FrameIndex
from fz.fusion import Fuser, Fusion, Keep, Plain, Recorder
from fz.model.layers import TextContext
from fz.model.unet import UNet

INNER = 10  # Adam steps at each timestep
AT_ONCE = 64 * 64  # a frame of 512²
OWN = FrameIndex((0,))


@dataclass(frozen=True)
class Frames:
    """N frames' inversion, latents (N, 4, h, w), and their unconditional embeddings (N, 77, Cx) of each edit step."""

    source: Source
    nulls: tuple[Tensor, ...]


@contextlib.contextmanager
def apart(unet: UNet) -> Iterator[None]:
    """In this block frames share no statistics; with attention to their own (`OWN`) they share nothing."""
    before, unet.clip_norm = unet.clip_norm, False
    try:
        yield
    finally:
        unet.clip_norm = before


def optimise_frames(
    unet: UNet,
    z_0: Tensor,
    source: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    watch: Watch = ignore,
    at_once: int = AT_ONCE,
) -> list[Frames]:
    """Invert each frame of z_0 (F, 4, h, w) under the source prompt, and optimise its null text; watch is called F · T
    times.

    at_once: as many frames go together as have that many pixels of latents, at least one; one where a tuned model's
    layers span frames.
    """
    groups, done = [], 0

    def count(k: int, z: Tensor) -> None:
        nonlocal done
        for _ in z:
            done += 1
            watch(done, z)

    with apart(unet):
        for some in z_0.split(1 if unet.config.temporal else max(1, at_once // z_0[0, 0].numel())):
            inverted = invert(unet, Source(source, latents={CLEAN: some}), schedule, OWN)
            groups.append(
                Frames(inverted, null_text(unet, inverted.latents, source, negative, schedule, guidance, watch=count))
            )
    return groups


@torch.no_grad()
def null_text(
    unet: UNet,
    latents: Mapping[int, Tensor],
    source: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    inner: int = INNER,
    watch: Watch = ignore,
) -> tuple[Tensor, ...]:
    """The unconditional embeddings (N, 77, Cx) of each step with which guided sampling of the source prompt follows the
    inverted latents.

    latents: t -> (N, 4, h, w) of N frames, the branches of one batch, none of which knows of another. As published for
    T = 50: at step i, Adam of rate 1e-2 (1 - i/100), until a frame's squared error is below 1e-5 + i · 2e-5; for
    another T both go by the share of the steps. A step starts from the last one's embedding. Without guidance nothing
    depends on it: the negative prompt then.
    """
    z = latents[schedule.timesteps[0]]
    null = negative.expand(len(z), *negative.shape)
    if guidance <= 1:
        return (null,) * schedule.steps
    nulls, text = [], TextContext(source.expand(len(z), *source.shape))
    for k, t, t_prev in schedule.downward():
        alpha_bar, alpha_bar_prev, share = schedule.alpha_bar(t), schedule.alpha_bar(t_prev), k / schedule.steps
        eps_cond = unet(z[:, None], t, text)[:, 0]

        def guided_step(
            null: Tensor, of: list[int], z=z, t=t, eps_cond=eps_cond, a=alpha_bar, a_prev=alpha_bar_prev
        ) -> Tensor:
            eps_null = unet(z[of, None], t, TextContext(null))[:, 0]
            return ddim_step(z[of], guide(torch.stack([eps_null, eps_cond[of]]), guidance), a, a_prev)

        # an optimiser for each frame: one that is near enough is left alone
        own = [one.clone().requires_grad_() for one in null]
        adams = [torch.optim.Adam([one], lr=1e-2 * (1 - share / 2)) for one in own]
        far = list(range(len(own)))
        for _ in range(inner):
            with torch.enable_grad():
                step = guided_step(torch.stack([own[i] for i in far]), far)
                losses = F.mse_loss(step, latents[t_prev][far], reduction="none").flatten(1).mean(1)
                # of the embeddings alone: the UNet's weights get no gradient
                gradients = torch.autograd.grad(losses.sum(), [own[i] for i in far])
            for i, gradient in zip(far, gradients, strict=True):
                own[i].grad = gradient
                adams[i].step()
            far = [i for i, loss in zip(far, losses.tolist(), strict=True) if not loss < 1e-5 + 1e-3 * share]
            if not far:
                break
        null = torch.stack([one.detach() for one in own])
        nulls.append(null)
        z = guided_step(null, list(range(len(z))))
        watch(k + 1, z)
    return tuple(nulls)


@torch.no_grad()
def null_p2p(
    unet: UNet,
    groups: Sequence[Frames],
    target: Tensor,
    schedule: Schedule,
    guidance: float,
    fusion: Fusion | None,
    watch: Watch = ignore,
) -> Tensor:
    """z_0 (F, 4, h, w) of the target prompt (77, Cx), each frame with the attention of its own reconstruction.

    fusion: its mapper, re-weighting and windows count; its masks do not. None: the target is sampled plainly.
    """
    if fusion:
        fusion = Fusion(fusion.mapper, fusion.kept, fusion.equalizer, fusion.cross_window, fusion.self_window)
    noise = [group.source.latents[schedule.timesteps[0]] for group in groups]
    pairs = list(zip(noise, noise, strict=True))  # of the reconstruction and of the edit
    with apart(unet):
        for k, t, t_prev in schedule.downward():
            alpha_bar, alpha_bar_prev = schedule.alpha_bar(t), schedule.alpha_bar(t_prev)
            for i, (group, (z_src, z)) in enumerate(zip(groups, pairs, strict=True)):
                eps_src, eps = both(unet, group, k, t, z_src, z, target, guidance, fusion)
                pairs[i] = (
                    ddim_step(z_src, eps_src, alpha_bar, alpha_bar_prev),
                    ddim_step(z, eps, alpha_bar, alpha_bar_prev),
                )
            watch(k + 1, torch.cat([z for _, z in pairs]))
    return torch.cat([z for _, z in pairs])


def both(
    unet: UNet,
    group: Frames,
    k: int,
    t: int,
    z_src: Tensor,
    z: Tensor,
    target: Tensor,
    guidance: float,
    fusion: Fusion | None,
) -> tuple[Tensor, Tensor]:
    """The guided eps of the frames' reconstructions, and of their edits with the reconstructions' attention."""
    source = TextContext(group.source.embedding[None])
    seen, attend = Recorder(OWN, keep=fusion.keeps(k) if fusion else Keep()), Plain(OWN)
    eps_src = unet(z_src[None], t, source, seen)[0]
    if fusion:
        attend = Fuser(OWN, fusion, k, tuple(z.shape[-2:]), None, seen.kept, source)
    eps = unet(z[None], t, TextContext(target[None]), attend)[0]
    if guidance <= 1:
        return eps_src, eps
    # each frame has an embedding of its own here: it is a branch
    nulls = TextContext(group.nulls[k].repeat(2, 1, 1))
    null_src, null = unet(torch.cat([z_src, z])[:, None], t, nulls)[:, 0].chunk(2)
    return guide(torch.stack([null_src, eps_src]), guidance), guide(torch.stack([null, eps]), guidance)
