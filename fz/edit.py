"""Algorithm 1: invert a clip under its own sentence, then denoise it under another while fusing the attention seen on
the way.

Latents are (F, 4, h, w), scaled by 0.18215. Time is a timestep t; `ddim.Schedule` says which there are. Words, files
and pictures are elsewhere: this file gets embeddings and tensors, and calls `callback(steps done, latents)` after each
step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fz.attention import FUSED_FROM_STRIDE, Plain
from fz.ddim import Schedule, Step
from fz.denoiser import Denoiser
from fz.fusion import Fuser, Fusion, FusionStep
from fz.guidance import Guidance, Guide
from fz.masks import EVERYWHERE, EditRegion, blend_latents, foreground, self_masks
from fz.model.layers import TextContext
from fz.source import Source

Callback = Callable[[int, Tensor], None]  # (steps done, latents after them)


def ignore(steps_done: int, z: Tensor) -> None:
    """The callback that does nothing."""


@torch.no_grad()
def invert(model: Denoiser, source: Source, callback: Callback = ignore) -> Source:
    """DDIM inversion of z_0 under the source prompt at guidance 1 (Algorithm 1, first loop; eq. 3, 4).

    source: has z_0 at CLEAN, and the steps that an interrupted inversion left, which are not done again. It is filled
    and returned.
    """
    schedule, text, model = model.schedule, TextContext(source.embedding[None]), model.remembering()
    solver, source.control = model.steps(source.clean), model.control
    for done, t_prev, t in source.missing(schedule, model.reuse):
        z, seen = solver.shown(source.latents[t_prev], t_prev, t), source.recorder(model, t)
        eps = model(z[None], t, text, seen)[0]
        source.latents[t] = solver.up(z, eps, t_prev, t)
        model.settle()
        source.record(t, z, seen)
        callback(done, source.latents[t])
    return source


@torch.no_grad()
def reconstruct(model: Denoiser, source: Source, guidance: Guidance, callback: Callback = ignore) -> Source:
    """A sampling pass whose attention takes inversion's place: 'reconstruction attention', what the paper's Fig. 3 and
    8 compare with.

    source: has the inverted latents, which stay, and the embedding to sample under; the attention of the conditional
    branch is recorded into it. It is returned.
    """
    schedule, model = model.schedule, model.remembering()
    guide = Guide(source.embedding, guidance, schedule, model.reuse)
    solver, source.control, source.guided = model.steps({}), model.control, guide.text
    z = source.latents[schedule.timesteps[0]]
    for k, t, t_prev in schedule.downward():
        seen = source.recorder(model, t, branch=-1)
        eps = guide(model, z, t, seen)
        model.settle()
        source.record(t, z, seen)
        z = solver.down(z, eps, t, t_prev)
        callback(k + 1, z)
    return source


@dataclass(frozen=True)
class Edit:
    """One edit of a clip, as tensors.

    prompt: (77, Cx), the target's embedding. fusion: None samples plainly. region: where the clip may change; without a
    fusion its background alone counts. done: the latents after each step that an interrupted edit had done, up to a
    full step. clean: what a solver remembers of the steps that are done, by timestep (`fz.solver`).
    """

    prompt: Tensor
    fusion: Fusion | None = None
    region: EditRegion = EVERYWHERE
    done: Sequence[Tensor] = ()
    clean: dict[int, Tensor] = field(default_factory=dict)

    def after(self, steps: Sequence[Mapping[str, Tensor]], schedule: Schedule) -> "Edit":
        """This edit, to go on from the steps that `left` gave."""
        device, times = self.prompt.device, schedule.timesteps
        clean = {t: step["clean"].to(device) for t, step in zip(times, steps, strict=False) if "clean" in step}
        return replace(self, done=[step["z"].to(device) for step in steps], clean=clean)

    def left(self, k: int, z: Tensor, schedule: Schedule) -> dict[str, Tensor]:
        """What an edit that goes on after k steps, at z, has to find again: `after` takes it."""
        t = schedule.timesteps[k - 1]
        return {"z": z} | ({"clean": self.clean[t]} if t in self.clean else {})


@torch.no_grad()
def edit(model: Denoiser, source: Source, task: Edit, guidance: Guidance, callback: Callback = ignore) -> Tensor:
    """Denoise the inverted latent under the target prompt with attention fusion (Algorithm 1, second loop; eq. 2, 5).
    Returns z_0.
    """
    # its words and its user's mask reach the device once
    task = replace(task, region=task.region.on(task.prompt.device))
    schedule, model = model.schedule, model.remembering()
    fuse, blend = Fuse(model, source, task), Blend(model, source, task)
    guide, solver = Guide(task.prompt, guidance, schedule, model.reuse), model.steps(task.clean)
    z = task.done[-1] if task.done else source.latents[schedule.timesteps[0]]
    for step in schedule.downward(done=len(task.done)):
        attend = fuse(step)
        eps = guide(model, z, step.t, attend)
        z = solver.down(z, eps, step.t, step.t_prev)
        z = blend(z, step, attend)
        model.settle()
        callback(step.k + 1, z)
    return z


class Fuse:
    """attend = fuse(step): the attention of one edit step, fused with the source's of the same timestep."""

    def __init__(self, model: Denoiser, source: Source, task: Edit):
        self.model, self.source, self.task = model, source, task
        self.source_text = TextContext(source.embedding[None])
        self.windows: dict[tuple[float, ...], FusionStep] = {}

    def __call__(self, step: Step) -> Plain | Fuser:
        model, source, fusion, region = self.model, self.source, self.task.fusion, self.task.region
        if fusion is None:
            return Plain(model.frame_index)
        # a shallow step has no fused site, and makes no map: latents are blended by that of its full step
        full, steps = model.is_full(step.t), model.schedule.steps
        served = model.reuse.served_by(step.k, steps) if full else ()
        return Fuser(
            model.frame_index,
            self.fusion_at(step.k, full),
            source.queries_and_keys(model, step.t, fusion.keeps(step.k), self.source_text) if full else {},
            self.source_text,
            masks_of(model, source, self.task, step.k),
            region.hides_object,
            record_target=any(region.blends_latents_after(k + 1, steps) for k in served),
        )

    def fusion_at(self, k: int, full: bool) -> FusionStep:
        """`Fusion.at`, nothing being fused at the level that a shallow step has; steps that fuse alike share it, so
        that its weights reach the device once.
        """
        fusion = self.task.fusion if full else replace(self.task.fusion, least_stride=FUSED_FROM_STRIDE)
        window = (full, fusion.replaces_self(k), *fusion.cross_window[k].tolist())
        if window not in self.windows:
            self.windows[window] = fusion.at(k)
        return self.windows[window]


def masks_of(model: Denoiser, source: Source, task: Edit, k: int) -> dict[int, Tensor] | None:
    """The masks of edit step k that self-attention uses, stride of a site -> (F, h, w) bool; None where it uses none.

    A blend mask is used while self-attention is fused, a mask that hides keys at every step. A shallow step's are those
    of its full step.
    """
    k = model.full_step(k)
    if task.fusion is None or not (task.fusion.replaces_self(k) or task.region.hides_object):
        return None
    t = model.schedule.timesteps[k]
    return self_masks(task.region, model.unet.sites(), source.maps[t], source.latent_size, task.fusion.least_stride)


class Blend:
    """z = blend(z, step, attend): outside the edited region, the source's latent of the same noise level."""

    def __init__(self, model: Denoiser, source: Source, task: Edit):
        self.source, self.region, self.steps = source, task.region, model.schedule.steps
        self.maps: tuple[Tensor, Tensor] | None = None  # the source's and the target's, of the last full step
        self.steady = foreground(task.region, source.maps, source.latent_size)

    def __call__(self, z: Tensor, step: Step, attend: Plain | Fuser) -> Tensor:
        if isinstance(attend, Fuser) and attend.record_target:
            source_map = self.source.maps[step.t]
            self.maps = source_map, attend.fused_target_map(source_map)
        if self.maps and self.region.blends_latents_after(step.k + 1, self.steps):
            z = blend_latents(z, self.source.latents[step.t_prev], self.region, *self.maps)
        return z if self.steady is None else torch.where(self.steady[:, None], z, self.source.latents[step.t_prev])
