"""Algorithm 1: invert a clip under its own sentence, then denoise it under another while fusing the attention seen on
the way.

Latents are (F, 4, h, w), scaled by 0.18215. Time is a timestep t; `ddim.Schedule` says which there are. Words, files
and pictures are elsewhere: this file gets embeddings and a `Fusion`, and calls `watch` after each step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fz.chunks import operands_of
from fz.ddim import Schedule, ddim_inverse_step, ddim_step
from fz.frames import FrameIndex
from fz.fusion import FUSED_FROM_STRIDE, MAP_STRIDE, Fuser, Fusion, Keep, Plain, Recorder, blend_mask
from fz.masks import edit_mask, foreground, reduced
from fz.model.finite import check_finite
from fz.model.layers import Site, TextContext
from fz.model.unet import UNet

Watch = Callable[[int, Tensor], None]  # (steps done, latents after them)
Window = tuple[float, float]  # shares of the steps: from, to
Operands = Mapping[str, tuple[Tensor, ...]]  # site name -> (q, k) of a self-attention, (q,) of a cross-attention


def ignore(steps_done: int, z: Tensor) -> None:
    """The `watch` that watches nothing."""


class Kept(Protocol):
    """Where the source's queries and keys are kept, t -> site name -> operands; `store.py` has one in RAM and one in
    files.
    """

    def put(self, t: int, operands: Operands) -> None: ...

    def get(self, t: int) -> Operands | None:
        """None where they are not: they are then computed again from the source's latent, to the same bits."""


class KeptNowhere:
    """'recompute': nothing is kept but latents and averaged maps."""

    def put(self, t: int, operands: Operands) -> None:
        pass

    def get(self, t: int) -> Operands | None:
        return None


@dataclass
class Source:
    """What a pass over the source clip leaves behind, keyed by timestep: all that editing needs of it.

    latents: z at noise level t (CLEAN … the noisiest). inputs: the z that the UNet saw at t, from which the source's
    queries and keys can be had again. maps: c_src at t averaged over heads and 1/4-level layers, (F, N, 77). kept: Q
    and K by site name, where kept.
    """

    embedding: Tensor
    latents: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)
    kept: Kept = field(default_factory=KeptNowhere)

    def record(self, t: int, z: Tensor, seen: Recorder) -> None:
        self.inputs[t] = z
        self.maps[t] = seen.average()
        if seen.kept:
            self.kept.put(t, seen.kept)


def keep_nothing(k: int) -> Keep:
    """What is kept for edit step k if nothing is."""
    return Keep()


@torch.no_grad()
def invert(
    unet: UNet,
    source: Source,
    schedule: Schedule,
    frame_index: FrameIndex,
    keep: Callable[[int], Keep] = keep_nothing,
    watch: Watch = ignore,
) -> Source:
    """DDIM inversion of z_0 under the source prompt at guidance 1 (Algorithm 1, first loop; eq. 3, 4).

    source: has z_0 at CLEAN, and whatever an interrupted inversion had left, which is not done again; it is filled and
    returned. keep: what to keep for edit step k.
    """
    text = TextContext(source.embedding[None])
    for done, (t_prev, t) in enumerate(schedule.upward(), start=1):
        z = source.latents[t_prev]
        if t not in source.latents or t not in source.maps:
            seen = Recorder(frame_index, keep=keep(schedule.steps - done))
            eps = unet(z[None], t, text, seen)[0]
            source.record(t, z, seen)
            z_t = ddim_inverse_step(z, eps, schedule.alpha_bar(t_prev), schedule.alpha_bar(t))
            check_finite(
                z_t, unet, z[None], t, text, Plain(frame_index), f"inversion step {done} of {schedule.steps} (t = {t})"
            )
            source.latents[t] = z_t
        source.inputs[t] = z
        watch(done, source.latents[t])
    return source


def source_operands(
    unet: UNet, source: Source, t: int, keep: Keep, text: TextContext, frame_index: FrameIndex
) -> Operands:
    """The source's queries and keys at t: those kept, or else a pass over the source's own latent as far as the last
    fused layer.

    The pass has inversion's batch, so that what it gives is what inversion would have kept, to the bit.
    """
    wanted = [site.name for site in unet.sites() if keep.wants(site)]
    kept = source.kept.get(t) or {}
    if any(name not in kept for name in wanted):
        kept = operands_of(unet, Recorder(frame_index, keep=keep, last=wanted[-1]), source.inputs[t][None], t, text)
    return kept


@torch.no_grad()
def reconstruct(
    unet: UNet,
    inverted: Source,
    embedding: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    frame_index: FrameIndex,
    keep: Callable[[int], Keep] = keep_nothing,
    kept: Kept | None = None,
    watch: Watch = ignore,
) -> Source:
    """A sampling pass whose attention takes inversion's place: 'reconstruction attention', what the paper's Fig. 3 and
    8 compare with.

    Samples `embedding` from the inverted noise with guidance and records its conditional branch. The latents stay
    inversion's.
    """
    source = Source(embedding, latents=inverted.latents, kept=kept or KeptNowhere())
    text = TextContext(branch_prompts(negative, embedding, guidance))
    z = inverted.latents[schedule.timesteps[0]]
    for k, t, t_prev in schedule.downward():
        seen = Recorder(frame_index, branch=-1, keep=keep(k))
        eps = guide(unet(batch_of(z, text), t, text, seen), guidance)
        source.record(t, z, seen)
        z = ddim_step(z, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
        watch(k + 1, z)
    return source


@torch.no_grad()
def edit(
    unet: UNet,
    source: Source,
    embedding: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    frame_index: FrameIndex,
    fusion: Fusion | None,
    done: Sequence[Tensor] = (),
    watch: Watch = ignore,
    watch_masks: Callable[[int, Mapping[tuple[int, int], Tensor]], None] | None = None,
    guided: Window = (0.0, 1.0),
) -> Tensor:
    """Denoise the inverted latent under the target prompt with attention fusion (Algorithm 1, second loop; eq. 2, 5).
    Returns z_0.

    embedding, negative: (77, Cx) of the target and of the negative (usually empty) prompt; guidance <= 1: no
    unconditional branch. fusion: None samples plainly. done: the latents after each step that an interrupted edit had
    done. watch_masks(k, masks by size): the self-attention blend masks of edit step k. guided: the share of steps with
    guidance, from, to.
    """
    z = source.latents[schedule.timesteps[0]]
    size = tuple(z.shape[-2:])
    source_text = TextContext(source.embedding[None])
    texts = {w: TextContext(branch_prompts(negative, embedding, w)) for w in (guidance, 1.0)}
    changes = foreground(fusion, source.maps, size) if fusion else None
    for k, t, t_prev in schedule.downward():
        masks = self_masks(fusion, unet.sites(), source.maps[t], size) if fusion and fusion.replaces_self(k) else None
        if masks and watch_masks:
            watch_masks(k, masks)
        if k < len(done):
            z = done[k]
            watch(k + 1, z)
            continue
        attend, blends = Plain(frame_index), False
        # outside its window guidance is 1, and costs no unconditional branch
        weight = guidance if guided[0] <= k / schedule.steps < guided[1] else 1.0
        if fusion:
            kept = source_operands(unet, source, t, fusion.keeps(k), source_text, frame_index)
            blends = fusion.latent_blend is not None and fusion.latent_blend.active(k + 1, schedule.steps)
            attend = Fuser(frame_index, fusion, k, size, masks, kept, source_text, record_target=blends)
        text = texts[weight]
        batch = batch_of(z, text)
        eps = guide(unet(batch, t, text, attend), weight)
        z = ddim_step(z, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
        if blends:
            z = blend_latents(
                z, source.latents[t_prev], fusion, source.maps[t], attend.fused_target_map(source.maps[t])
            )
        if changes is not None:
            z = torch.where(changes[:, None], z, source.latents[t_prev])
        check_finite(z, unet, batch, t, text, Plain(frame_index), f"edit step {k + 1} of {schedule.steps} (t = {t})")
        watch(k + 1, z)
    return z


def branch_prompts(negative: Tensor, target: Tensor, guidance: float) -> Tensor:
    """The prompts of a batch, (B, 77, Cx): unconditional if guided, conditional last."""
    return torch.stack([negative, target] if guidance > 1 else [target])


def batch_of(z: Tensor, text: TextContext) -> Tensor:
    """The latent once for each prompt, (B, F, 4, h, w)."""
    return z.expand(len(text.embedding), *z.shape)


def guide(eps: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of the last two branches; the last one alone where guidance <= 1."""
    return eps[-1] if guidance <= 1 else eps[-2] + guidance * (eps[-1] - eps[-2])


def self_masks(
    fusion: Fusion, sites: list[Site], source_map: Tensor, size: tuple[int, int]
) -> dict[tuple[int, int], Tensor] | None:
    """The blend mask of every size that a fused site has, (h, w) -> (F, h, w) bool; None where the fusion has no
    mask.
    """
    if fusion.mask_words is None and fusion.user_mask is None:
        return None
    # keys are hidden at the full-size level too
    least = 1 if fusion.hides_object else FUSED_FROM_STRIDE
    sizes = {(size[0] // s.stride, size[1] // s.stride) for s in sites if s.kind == "self" and s.stride >= least}
    return {s: edit_mask(fusion, source_map, size, s) for s in sorted(sizes, reverse=True)}


def blend_latents(z: Tensor, background: Tensor, fusion: Fusion, source_map: Tensor, target_map: Tensor) -> Tensor:
    """Outside the source's and the target's word masks, or the user's, the inverted latent of the same noise level."""
    blend, size = fusion.latent_blend, tuple(z.shape[-2:])
    if fusion.user_mask is not None:
        return torch.where(reduced(fusion.user_mask, size).to(z.device)[:, None], z, background)
    map_size = (size[0] // MAP_STRIDE, size[1] // MAP_STRIDE)
    edited = blend_mask(source_map, blend.source_words, blend.threshold, map_size, size)
    edited |= blend_mask(target_map, blend.target_words, blend.threshold, map_size, size)
    return torch.where(edited[:, None], z, background)
