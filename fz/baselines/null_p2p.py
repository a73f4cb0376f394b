"""Null-text optimisation (Mokady et al. 2022, arXiv 2211.09794), then prompt-to-prompt (Hertz et al. 2022), frame by frame.

Each frame is a clip of its own: it is inverted, the unconditional embedding of each step is optimised until guided sampling follows the
inversion, and the target is sampled beside that reconstruction, whose attention it takes. Neither masks nor latent blending.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.ddim import CLEAN, Schedule, ddim_step
from fz.edit import Source, Watch, batch_of, branch_prompts, guide, ignore, invert
from fz.fusion import FrameIndex, Fuser, Fusion, Plain, Recorder
from fz.layers import TextContext
from fz.unet import UNet

INNER = 10  # Adam steps at each timestep
AT_ONCE = 64 * 64  # a frame of 512²
OWN = FrameIndex((0,))


@dataclass(frozen=True)
class Frame:
    """One frame's inversion, latents (1, 4, h, w), and the unconditional embedding (77, Cx) of each edit step."""

    source: Source
    nulls: tuple[Tensor, ...]


def optimise_frames(
    unet: UNet,
    z_0: Tensor,
    source: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    watch: Watch = ignore,
    at_once: int = AT_ONCE,
) -> list[Frame]:
    """Invert each frame of z_0 (F, 4, h, w) under the source prompt, and optimise its null text; watch is called F · T times.

    at_once: as many frames are optimised together as have that many pixels of latents, at least one.
    """
    frames, done = [], 0

    def count(k: int, z: Tensor) -> None:
        nonlocal done
        for _ in z:
            done += 1
            watch(done, z)

    # gradients of many small frames take no more memory than those of a large one
    for some in z_0.split(max(1, at_once // z_0[0, 0].numel())):
        inverted = [invert(unet, Source(source, latents={CLEAN: z[None]}), schedule, OWN) for z in some]
        latents = {t: torch.cat([one.latents[t] for one in inverted]) for t in inverted[0].latents}
        nulls = null_text(unet, latents, source, negative, schedule, guidance, watch=count)
        frames += [Frame(one, tuple(null[i] for null in nulls)) for i, one in enumerate(inverted)]
    return frames


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
    """The unconditional embeddings (N, 77, Cx) of each step with which guided sampling of the source prompt follows the inverted latents.

    latents: t -> (N, 4, h, w) of N frames, the branches of one batch, none of which knows of another. As published for T = 50: at step i,
    Adam of rate 1e-2 (1 - i/100), until a frame's squared error is below 1e-5 + i · 2e-5; for another T both go by the share of the steps.
    A step starts from the last one's embedding. Without guidance nothing depends on it: the negative prompt then.
    """
    z = latents[schedule.timesteps[0]]
    null = negative.expand(len(z), *negative.shape)
    if guidance <= 1:
        return (null,) * schedule.steps
    nulls, text = [], TextContext(source.expand(len(z), *source.shape))
    for k, t, t_prev in schedule.downward():
        alpha_bar, alpha_bar_prev, share = schedule.alpha_bar(t), schedule.alpha_bar(t_prev), k / schedule.steps
        eps_cond = unet(z[:, None], t, text)[:, 0]

        def guided_step(null: Tensor, of: list[int], z=z, t=t, eps_cond=eps_cond, a=alpha_bar, a_prev=alpha_bar_prev) -> Tensor:
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
    frames: Sequence[Frame],
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
    noise = [frame.source.latents[schedule.timesteps[0]] for frame in frames]
    pairs = list(zip(noise, noise, strict=True))  # of the reconstruction and of the edit
    for k, t, t_prev in schedule.downward():
        alpha_bar, alpha_bar_prev = schedule.alpha_bar(t), schedule.alpha_bar(t_prev)
        for i, (frame, (z_src, z)) in enumerate(zip(frames, pairs, strict=True)):
            eps_src, eps = both(unet, frame, k, t, z_src, z, target, guidance, fusion)
            pairs[i] = (ddim_step(z_src, eps_src, alpha_bar, alpha_bar_prev), ddim_step(z, eps, alpha_bar, alpha_bar_prev))
        watch(k + 1, torch.cat([z for _, z in pairs]))
    return torch.cat([z for _, z in pairs])


def both(
    unet: UNet, frame: Frame, k: int, t: int, z_src: Tensor, z: Tensor, target: Tensor, guidance: float, fusion: Fusion | None
) -> tuple[Tensor, Tensor]:
    """The guided eps of a frame's reconstruction, and of its edit with the reconstruction's attention."""
    source, null = frame.source.embedding, frame.nulls[k]
    seen = Recorder(OWN, branch=-1)
    if fusion:
        seen.keep = fusion.keeps(k)
    text = TextContext(branch_prompts(null, source, guidance))
    eps_src = guide(unet(batch_of(z_src, text), t, text, seen), guidance)
    attend = Plain(OWN)
    if fusion:
        attend = Fuser(OWN, fusion, k, tuple(z.shape[-2:]), None, seen.kept, TextContext(source[None]))
    text = TextContext(branch_prompts(null, target, guidance))
    return eps_src, guide(unet(batch_of(z, text), t, text, attend), guidance)
