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
OWN = FrameIndex((0,))


@dataclass(frozen=True)
class Frame:
    """One frame's inversion, latents (1, 4, h, w), and the unconditional embedding (77, Cx) of each edit step."""

    source: Source
    nulls: tuple[Tensor, ...]


def optimise_frames(
    unet: UNet, z_0: Tensor, source: Tensor, negative: Tensor, schedule: Schedule, guidance: float, watch: Watch = ignore
) -> list[Frame]:
    """Invert each frame of z_0 (F, 4, h, w) under the source prompt, and optimise its null text; watch is called after each timestep."""
    frames, done = [], 0
    for i in range(len(z_0)):
        inverted = invert(unet, Source(source, latents={CLEAN: z_0[i : i + 1]}), schedule, OWN)

        def count(k: int, z: Tensor) -> None:
            nonlocal done
            done += 1
            watch(done, z)

        frames.append(Frame(inverted, null_text(unet, inverted.latents, source, negative, schedule, guidance, watch=count)))
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
    """The unconditional embedding of each step with which guided sampling of the source prompt follows the inverted latents.

    latents: t -> (1, 4, h, w). As published for T = 50: at step i, Adam of rate 1e-2 (1 - i/100), until the squared error is below
    1e-5 + i · 2e-5; for another T both go by the share of the steps. A step starts from the last one's embedding.
    Without guidance nothing depends on it: the negative prompt then.
    """
    if guidance <= 1:
        return (negative,) * schedule.steps
    nulls, null, text = [], negative, TextContext(source[None])
    z = latents[schedule.timesteps[0]]
    for k, t, t_prev in schedule.downward():
        alpha_bar, alpha_bar_prev, share = schedule.alpha_bar(t), schedule.alpha_bar(t_prev), k / schedule.steps
        eps_cond = unet(z[None], t, text)[0]

        def guided_step(null: Tensor, z=z, t=t, eps_cond=eps_cond, a=alpha_bar, a_prev=alpha_bar_prev) -> Tensor:
            eps_null = unet(z[None], t, TextContext(null[None]))[0]
            return ddim_step(z, guide(torch.stack([eps_null, eps_cond]), guidance), a, a_prev)

        null = null.clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=1e-2 * (1 - share / 2))
        for _ in range(inner):
            with torch.enable_grad():
                loss = F.mse_loss(guided_step(null), latents[t_prev])
                # of the embedding alone: the UNet's weights get no gradient
                (null.grad,) = torch.autograd.grad(loss, [null])
            adam.step()
            if loss.item() < 1e-5 + 1e-3 * share:
                break
        null = null.detach()
        nulls.append(null)
        z = guided_step(null)
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
