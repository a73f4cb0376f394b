"""What a pass over the source clip leaves behind for editing, keyed by timestep.

Latents and averaged maps always stay. Queries and keys stay where a `Store` keeps them; those that are not there, as
after an inversion that was found in a cache, are computed again from the source's own latent when an edit step needs
them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fz.attention import QK, Keep, Plain, Recorder
from fz.chunks import qk_of
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.guidance import batch_of
from fz.model.control import Control
from fz.model.deep import Reuse
from fz.model.layers import TextContext


class Store:
    """Where the source's queries and keys are kept, by timestep: this one keeps none ('recompute'), `fz.memory.kept`
    has one where the model is, one in RAM and one in files.
    """

    def put(self, t: int, qk: QK) -> None:
        pass

    def get(self, t: int) -> QK | None:
        """None where they are not: they are then computed again from the source's latent, to the same bits."""

    def has(self, t: int) -> bool:
        return False

    def close(self) -> None:
        """Nothing more is written or read."""


def keep_nothing(k: int) -> Keep:
    """What is kept for edit step k if nothing is."""
    return Keep()


@dataclass
class Source:
    """What a pass over the source clip leaves behind, keyed by timestep: all that editing needs of it.

    latents: z at noise level t (CLEAN … the noisiest). inputs: the z that the UNet saw at t, from which the source's
    queries and keys can be computed again. maps: c_src at t averaged over heads and 1/4-level layers, (F, N, 77); at a
    shallow step (`fz.model.deep`) that of the full one before it. store: where queries and keys are kept; keep(k):
    which of them edit step k will need, and in which dtype. newest_map: of the last full step. control: of that pass,
    if it had any. clean: what a solver remembers of that pass (`fz.solver`). guided: its prompts, the source's last, if
    it was guided.
    """

    embedding: Tensor
    latents: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)
    store: Store = field(default_factory=Store)
    keep: Callable[[int], Keep] = keep_nothing
    newest_map: Tensor | None = None
    control: Control | None = None
    clean: dict[int, Tensor] = field(default_factory=dict)
    guided: TextContext | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w)."""
        return tuple(next(iter(self.latents.values())).shape[-2:])

    def tensors(self, schedule: Schedule) -> dict[str, Tensor]:
        """By the names that files have: z_0, and inverted.0 (= z_0) … inverted.T if the clip was inverted."""
        latents, times = self.latents, (CLEAN, *reversed(schedule.timesteps))
        steps = {f"inverted.{i:03d}": latents[t] for i, t in enumerate(times)} if len(latents) > 1 else {}
        return {**steps, "z0": latents[CLEAN]}

    def missing(self, schedule: Schedule, reuse: Reuse = Reuse()) -> list[tuple[int, int, int]]:  # noqa: B008 (frozen)
        """(steps done after it, t_prev, t) of each inversion step that is not there, upward.

        With deep features to be reused, all from the full step on that the first of them follows: it is done again.
        """
        steps = [(done, t_prev, t) for done, (t_prev, t) in enumerate(schedule.upward(), start=1)]
        missing = [step for step in steps if step[2] not in self.latents or step[2] not in self.maps]
        if reuse.every == 1 or not missing:
            return missing
        k = schedule.steps - missing[0][0]
        return steps[schedule.steps - 1 - reuse.after(k, schedule.steps) :]

    def restore(self, t_prev: int, t: int, step: Mapping[str, Tensor]) -> None:
        """Take what `left` gave of the inversion step that came to t, its latents, map, and what a solver remembers."""
        device = self.embedding.device
        self.latents[t], self.maps[t] = step["z"].to(device), step["map"].to(device)
        # a solver that remembers has shown the UNet z_t itself, but at its first step
        self.inputs[t] = self.latents[t if "clean" in step and t_prev != CLEAN else t_prev]
        if "clean" in step:
            self.clean[t] = step["clean"].to(device)

    def left(self, t: int) -> dict[str, Tensor]:
        """What an inversion that goes on from t has to find again: `restore` takes it."""
        return {"z": self.latents[t], "map": self.maps[t]} | ({"clean": self.clean[t]} if t in self.clean else {})

    def recorder(self, model: Denoiser, t: int, branch: int = 0) -> Recorder | Plain:
        """Attention at t that keeps of a branch what this source is to have: nothing of a shallow step."""
        if not model.is_full(t):
            return Plain(model.frame_index)
        return Recorder(model.frame_index, branch, self.keep(model.schedule.timesteps.index(t)))

    def record(self, t: int, z: Tensor, seen: Recorder | Plain) -> None:
        """Take what a Recorder has of the pass over z at t."""
        self.inputs[t] = z
        if isinstance(seen, Recorder):
            self.newest_map = seen.average()
            if seen.qk:
                self.store.put(t, seen.qk)
        self.maps[t] = self.newest_map

    def queries_and_keys(self, model: Denoiser, t: int, keep: Keep, text: TextContext) -> QK:
        """The source's queries and keys at t: those in the store, or else of a pass over the source's own latent as far
        as the last fused layer, which goes into the store.

        The pass has the batch of the first one, and gives what is kept of it in the same dtype, so that it has the same
        bits.
        """
        if not keep.anything:
            return {}
        sites, qk = model.unet.sites(), self.store.get(t) or {}
        if all(site.name in qk for site in sites if keep.wants(site)):
            return qk
        kept = self.keep(model.schedule.timesteps.index(t))
        both = keep | kept
        last = [site.name for site in sites if both.wants(site)][-1]
        text, control = self.guided or text, self.control and self.control.at(t)
        z = batch_of(self.inputs[t], text)
        seen = Recorder(model.frame_index, branch=len(z) - 1, keep=both, last=last)
        qk = qk_of(model.unet, seen, z, t, text, control, whole=kept.anything)
        if kept.anything:
            self.store.put(t, qk)
        return qk
