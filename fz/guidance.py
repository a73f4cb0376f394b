"""Classifier-free guidance (Ho and Salimans 2022): what the noise is, given the prompt rather than not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fz.ddim import Schedule
from fz.denoiser import Denoiser
from fz.model.deep import Reuse
from fz.model.layers import Attend, TextContext


@dataclass(frozen=True)
class Guidance:
    """How strongly sampling follows its prompt.

    negative: (77, Cx), the embedding of what it is led away from, usually of the empty prompt. scale: 1 or less is no
    guidance and costs no unconditional branch. window: the shares of the steps, from and to, that are guided.
    """

    negative: Tensor
    scale: float = 7.5
    window: tuple[float, float] = (0.0, 1.0)

    def prompts(self, target: Tensor) -> Tensor:
        """The prompts of a guided batch, (B, 77, Cx): unconditional if there is guidance, conditional last."""
        return torch.stack([self.negative, target] if self.scale > 1 else [target])


class Guide:
    """eps = guide(model, z, t, attend): the guided noise in z (F, 4, h, w) at t under one prompt."""

    def __init__(self, target: Tensor, guidance: Guidance, schedule: Schedule, reuse: Reuse = Reuse()):  # noqa: B008 (frozen)
        self.scale = guidance.scale
        first, last = guidance.window
        # outside its window guidance is 1, and costs no unconditional branch; a step that takes deep features has the
        # branches of the step that it takes them from
        full = {t: reuse.before(k, schedule.steps) for k, t, _ in schedule.downward()}
        self.guided = {t for t, k in full.items() if first <= k / schedule.steps < last}
        self.text, self.plain_text = TextContext(guidance.prompts(target)), TextContext(target[None])

    def __call__(self, model: Denoiser, z: Tensor, t: int, attend: Attend | None = None) -> Tensor:
        scale, text = (self.scale, self.text) if t in self.guided else (1.0, self.plain_text)
        return guided(model(batch_of(z, text), t, text, attend), scale)


def guided(eps: Tensor, scale: float) -> Tensor:
    """Of eps (B, …), unconditional and conditional last: eps_null + scale (eps_cond - eps_null); the conditional one
    alone where scale <= 1.
    """
    return eps[-1] if scale <= 1 else eps[-2] + scale * (eps[-1] - eps[-2])


def batch_of(z: Tensor, text: TextContext) -> Tensor:
    """The latent once for each prompt, (B, F, 4, h, w)."""
    return z.expand(len(text.embedding), *z.shape)
