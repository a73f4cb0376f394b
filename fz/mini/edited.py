"""A checkpoint on which the editor is measured: clips to latents, inverted, edited as the paper says or otherwise."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fz.clips.canny import edges
from fz.clips.media import to_uint8
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert, reconstruct
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.memory.budget import wanted
from fz.memory.inversions import digest, model_digest
from fz.memory.kept import KeptInMemory
from fz.mini.data import to_unit
from fz.mini.eye import Eye
from fz.mini.setup import Setup
from fz.model.control import Control, ControlNet
from fz.model.vae import decode_clip, encode_clip
from fz.prompts.plan import Plan, plan_edit
from fz.prompts.text import Tokens
from fz.settings.config import EditSettings, fuses_full
from fz.source import Source
from fz.weights.load import Checkpoint

ORDER = FrameIndex((0, "mid"))
FULL = {"self_replace": (0.0, 1.0), "cross_replace": (0.0, 1.0), "threshold": None, "align": "replace"}


@dataclass(frozen=True)
class Bench:
    """A checkpoint ready to edit. net: a ControlNet on outlines beside it; control: what that is shown, or None."""

    checkpoint: Checkpoint
    eye: Eye
    setup: Setup
    net: ControlNet | None = None
    control: Control | None = None

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_config(self.checkpoint.scheduler, self.setup.steps)

    @property
    def model(self) -> Denoiser:
        return Denoiser(self.checkpoint.unet, self.schedule, ORDER, control=self.control)

    def shown(self, frames: np.ndarray) -> "Bench":
        """The same with the ControlNet, at every step, shown the edges of these frames (F, H, W, 3) uint8."""
        pictures = edges(to_unit(torch.from_numpy(frames).permute(0, 3, 1, 2)))
        hint = self.net.hint(pictures[:, None].expand(-1, 3, -1, -1).float())
        return replace(self, control=Control(self.net, hint, 1.0, frozenset(self.schedule.timesteps)))

    def guidance(self, scale: float | None = None) -> Guidance:
        return Guidance(self.embed(""), self.setup.guidance if scale is None else scale)

    def key(self) -> str:
        """Of the models and the setup: what its figures depend on beside what is asked of it."""
        models = [self.checkpoint.unet, self.checkpoint.vae, self.checkpoint.text.model, self.eye]
        models += [self.net] if self.net is not None else []
        return digest(self.setup, *(model_digest(model) for model in models))

    def plan(self, edit: EditSettings, source: Tokens, target: Tokens) -> Plan:
        full = fuses_full(self.setup.fuse, miniature=True, edit=edit)
        return plan_edit(edit, source, target, self.schedule.steps, full=full)

    def embed(self, prompt: str) -> Tensor:
        return self.checkpoint.text.encode([prompt])[0]

    def invert(self, z0: Tensor, prompt: str) -> Source:
        """The clip inverted, all queries and keys kept."""
        tokens = self.checkpoint.text.tokens(prompt)
        everything = self.plan(EditSettings(prompt, **FULL), tokens, tokens).fusion
        source = Source(self.embed(prompt), {CLEAN: z0}, store=KeptInMemory(), keep=wanted([everything]))
        return invert(self.model, source)

    def edit(
        self, source: Source, prompt: str, target: str, settings: dict, guidance: float | None = None
    ) -> np.ndarray:
        text = self.checkpoint.text
        plan = self.plan(EditSettings(target, **settings), text.tokens(prompt), text.tokens(target))
        z = edit(self.model, source, Edit(self.embed(target), plan.fusion, plan.region), self.guidance(guidance))
        return to_uint8(decode_clip(self.checkpoint.vae, z))

    def resample(self, source: Source, prompt: str, target: str, settings: dict) -> Source:
        """What reconstruction instead of inversion leaves of the source: its attention while it is sampled again, with
        guidance.
        """
        text = self.checkpoint.text
        fusion = self.plan(EditSettings(target, **settings), text.tokens(prompt), text.tokens(target)).fusion
        again = Source(source.embedding, source.latents, store=KeptInMemory(), keep=wanted([fusion]))
        return reconstruct(self.model, again, self.guidance())


@torch.no_grad()
def code(bench: Bench, frames: np.ndarray) -> Tensor:
    """Frames (F, H, W, 3) uint8 to scaled latents."""
    return encode_clip(bench.checkpoint.vae, torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1)
