"""Null-text optimisation (Mokady et al. 2022, arXiv 2211.09794), then prompt-to-prompt (Hertz et al. 2022), frame by
frame.

Each frame is a clip of its own: it is inverted, the unconditional embedding of each step is optimised until guided
sampling follows the inversion, and the target is sampled beside that reconstruction, whose attention it takes. Neither
masks nor latent blending. Small frames go through the UNet several at a time, and know nothing of each other.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.attention import Keep, Plain, Recorder
from fz.ddim import CLEAN, Step, ddim_step
from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, ignore, invert
from fz.frames import FrameIndex
from fz.fusion import Fuser
from fz.guidance import Guidance, guided
from fz.model.layers import TextContext
from fz.model.unet import UNet, own_frame
from fz.source import Source

INNER = 10  # Adam steps at each timestep
# of the loss: half precision loses gradients as small as these; a power of two, which changes no bit in float32
SCALE = 2.0**12
AT_ONCE = 64 * 64  # a frame of 512²
OWN = FrameIndex((0,))


@dataclass(frozen=True)
class Frames:
    """N frames' inversion, latents (N, 4, h, w), and their unconditional embeddings (N, 77, Cx) of each edit step."""

    source: Source
    nulls: tuple[Tensor, ...]


def apart(model: Denoiser) -> Denoiser:
    """The model for a clip whose frames share nothing: statistics of each frame, attention to their own. Weights are
    the model's.
    """
    unet = copy.copy(model.layers)
    unet.clip_norm = False
    return dataclasses.replace(model, unet=unet, frame_index=OWN)


def frames_together(unet: UNet, pixels: int, at_once: int = AT_ONCE) -> int:
    """How many frames of so many pixels of latents go through the UNet, and back, at a time."""
    return 1 if unet.config.temporal else max(1, at_once // pixels)


def optimise_frames(
    model: Denoiser, source: Source, guidance: Guidance, callback: Callback = ignore, at_once: int = AT_ONCE
) -> list[Frames]:
    """Invert each frame of the source's z_0 (F, 4, h, w) under its prompt, and optimise its null text; callback is
    called F · T times.

    at_once: as many frames go together as have that many pixels of latents, at least one; one where a tuned model's
    layers span frames.
    """
    model, z_0, groups, done = apart(model), source.latents[CLEAN], [], 0
    together = frames_together(model.unet, z_0[0, 0].numel(), at_once)

    def count(k: int, z: Tensor) -> None:
        nonlocal done
        for _ in z:
            done += 1
            callback(done, z)

    for some in z_0.split(together):
        inverted = invert(model, Source(source.embedding, latents={CLEAN: some}))
        groups.append(Frames(inverted, null_text(model, inverted, guidance, callback=count)))
    return groups


@torch.no_grad()
def null_text(
    model: Denoiser, inverted: Source, guidance: Guidance, inner: int = INNER, callback: Callback = ignore
) -> tuple[Tensor, ...]:
    """The unconditional embeddings (N, 77, Cx) of each step with which guided sampling of the source prompt follows the
    inverted latents (N, 4, h, w).

    N frames are the branches of one batch, none of which knows of another. As published for T = 50: at step i, Adam of
    rate 1e-2 (1 - i/100), until a frame's squared error is below 1e-5 + i · 2e-5; for another T both go by the share of
    the steps. A step starts from the last one's embedding. Without guidance nothing depends on it: the negative prompt
    then.
    """
    schedule = model.schedule
    z = inverted.latents[schedule.timesteps[0]]
    null = guidance.negative.expand(len(z), *guidance.negative.shape)
    if guidance.scale <= 1:
        return (null,) * schedule.steps
    nulls, text = [], TextContext(inverted.embedding.expand(len(z), *inverted.embedding.shape))
    for step in schedule.downward():
        sample = GuidedStep(model, step, z, model(z[:, None], step.t, text, own_frame)[:, 0], guidance.scale)
        null = follow(sample, null, inverted.latents[step.t_prev], step.k / schedule.steps, inner)
        nulls.append(null)
        z = sample(null)
        callback(step.k + 1, z)
    return tuple(nulls)


@dataclass(frozen=True)
class GuidedStep:
    """One guided DDIM step of N frames as a function of their unconditional embeddings; eps_cond is known."""

    model: Denoiser
    step: Step
    z: Tensor
    eps_cond: Tensor
    scale: float

    def __call__(self, null: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """The latents after it, (n, 4, h, w), of these frames (all by default), null (n, 77, Cx)."""
        schedule, (_, t, t_prev) = self.model.schedule, self.step
        of = list(range(len(self.z))) if frames is None else list(frames)
        eps_null = self.model(self.z[of, None], t, TextContext(null), own_frame)[:, 0]
        eps = guided(torch.stack([eps_null, self.eps_cond[of]]), self.scale)
        return ddim_step(self.z[of], eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))


def follow(sample: GuidedStep, null: Tensor, wanted: Tensor, share: float, inner: int) -> Tensor:
    """The embeddings (N, 77, Cx), begun at `null`, with which the step leads to the wanted latents, frame by frame."""
    # an optimiser for each frame: one that is near enough is left alone
    own = [one.clone().requires_grad_() for one in null]
    adams = [torch.optim.Adam([one], lr=1e-2 * (1 - share / 2)) for one in own]
    far = list(range(len(own)))
    for _ in range(inner):
        with torch.enable_grad():
            z = sample(torch.stack([own[i] for i in far]), far)
            losses = F.mse_loss(z, wanted[far], reduction="none").flatten(1).mean(1)
            # of the embeddings alone: the UNet's weights get no gradient
            gradients = torch.autograd.grad(SCALE * losses.sum(), [own[i] for i in far])
        for i, gradient in zip(far, gradients, strict=True):
            own[i].grad = gradient / SCALE
            adams[i].step()
        far = [i for i, loss in zip(far, losses.tolist(), strict=True) if not loss < 1e-5 + 1e-3 * share]
        if not far:
            break
    return torch.stack([one.detach() for one in own])


@torch.no_grad()
def null_p2p(
    model: Denoiser, groups: Sequence[Frames], task: Edit, guidance: Guidance, callback: Callback = ignore
) -> Tensor:
    """z_0 (F, 4, h, w) of the target prompt, each frame with the attention of its own reconstruction.

    Of the task its prompt and fusion count (None: the target is sampled plainly), its region does not; of the guidance
    its scale.
    """
    model, schedule = apart(model), model.schedule
    noise = [group.source.latents[schedule.timesteps[0]] for group in groups]
    pairs = list(zip(noise, noise, strict=True))  # of the reconstruction and of the edit
    for step in schedule.downward():
        alpha_bar, alpha_bar_prev = schedule.alpha_bar(step.t), schedule.alpha_bar(step.t_prev)
        for i, (group, pair) in enumerate(zip(groups, pairs, strict=True)):
            eps = both(model, group, step, pair, task, guidance.scale)
            pairs[i] = tuple(ddim_step(z, e, alpha_bar, alpha_bar_prev) for z, e in zip(pair, eps, strict=True))
        callback(step.k + 1, torch.cat([z for _, z in pairs]))
    return torch.cat([z for _, z in pairs])


def both(
    model: Denoiser, group: Frames, step: Step, pair: tuple[Tensor, Tensor], task: Edit, scale: float
) -> tuple[Tensor, Tensor]:
    """The guided eps of the frames' reconstructions, and of their edits with the reconstructions' attention; pair: the
    latents of both.
    """
    (k, t, _), (z_src, z), fusion = step, pair, task.fusion
    source = TextContext(group.source.embedding[None])
    seen, attend = Recorder(OWN, keep=fusion.keeps(k) if fusion else Keep()), Plain(OWN)
    eps_src = model(z_src[None], t, source, seen)[0]
    if fusion:
        attend = Fuser(OWN, fusion.at(k), seen.qk, source)
    eps = model(z[None], t, TextContext(task.prompt[None]), attend)[0]
    if scale <= 1:
        return eps_src, eps
    # each frame has an embedding of its own here: it is a branch
    nulls = TextContext(group.nulls[k].repeat(2, 1, 1))
    null_src, null = model(torch.cat([z_src, z])[:, None], t, nulls, own_frame)[:, 0].chunk(2)
    return guided(torch.stack([null_src, eps_src]), scale), guided(torch.stack([null, eps]), scale)


@dataclass(frozen=True)
class NullTextP2P:
    """The two as one method. frames: what `optimise_frames` made of the clip, once for all edits."""

    frames: Sequence[Frames]

    @classmethod
    def of(cls, model: Denoiser, source: Source, guidance: Guidance, callback: Callback = ignore) -> "NullTextP2P":
        """With the frames of the source's z_0; see `optimise_frames`."""
        return cls(optimise_frames(model, source, guidance, callback))

    def __call__(
        self, model: Denoiser, source: Source, task: Edit, guidance: Guidance, callback: Callback = ignore
    ) -> Tensor:
        """See `null_p2p`; the source is in the frames."""
        return null_p2p(model, self.frames, task, guidance, callback)
