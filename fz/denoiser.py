"""The model as the loops call it: a UNet, the noise schedule it is sampled with, and which frames its frames attend to.

Called, it predicts the noise in z and checks that it is finite.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fz.attention import Plain
from fz.chunks import Chunks
from fz.ddim import Schedule
from fz.frames import FrameIndex
from fz.model.control import Control
from fz.model.deep import Deep, Reuse
from fz.model.finite import Watch
from fz.model.layers import Alter, Attend, TextContext
from fz.model.unet import UNet
from fz.shard import Shard
from fz.solver import Solver, solver_of


@dataclass(frozen=True)
class Denoiser:
    """eps = model(z, t, text, attend): the noise in z (B, F, 4, h, w) at timestep t, given one prompt a branch.

    unet: what predicts it, whole, in chunks or on several processes. schedule: the T timesteps of a run. frame_index:
    the frames that a frame reads in self-attention (eq. 8). reuse: at which steps the whole UNet runs. deep: what a
    loop's shallow steps take from its last full one; None: every call is a full one. control: what holds the
    structure at some timesteps. solver: how steps are taken, by its name.
    """

    unet: UNet | Chunks | Shard
    schedule: Schedule
    frame_index: FrameIndex = FrameIndex()
    reuse: Reuse = Reuse()
    deep: Deep | None = None
    control: Control | None = None
    solver: str = "ddim"
    watch: Watch = field(default_factory=Watch, init=False, repr=False, compare=False)

    @property
    def layers(self) -> UNet | Chunks:
        """The UNet whose layers are called: a replayed graph calls none."""
        return getattr(self.unet, "eager", self.unet)

    def remembering(self) -> "Denoiser":
        """The same for one loop over the schedule, whose shallow steps take the last full step's deep features."""
        return self if self.reuse.every == 1 else replace(self, deep=Deep(self.reuse.outer))

    def steps(self, clean: dict[int, Tensor]) -> Solver:
        """How one loop takes its steps. clean: see `solver_of`."""
        return solver_of(self.solver, self.schedule, clean)

    def full_step(self, k: int) -> int:
        """The edit step from which step k takes its deep features: itself where it is full."""
        return self.reuse.before(k, self.schedule.steps)

    def is_full(self, t: int) -> bool:
        """Does the whole UNet run at timestep t?"""
        return self.reuse.is_full(self.schedule.timesteps.index(t), self.schedule.steps)

    @property
    def full_timesteps(self) -> tuple[int, ...]:
        """Those at which the whole UNet runs, from the noisiest."""
        return tuple(filter(self.is_full, self.schedule.timesteps))

    def settle(self) -> None:
        """The last call's noise is finite, or NotFinite is raised, naming the first layer that gives NaN or infinity.
        A loop asks when it has launched all of a step, before it tells anybody of it.
        """
        self.watch.settle()

    def __call__(
        self, z: Tensor, t: int, text: TextContext, attend: Attend | None = None, alter: Alter | None = None
    ) -> Tensor:
        """attend: None is plain attention by the frame index. alter: see `UNet.forward`.

        Noise that is not finite raises NotFinite: on a CPU now, elsewhere by the next call or `settle`.
        """
        attend = attend or Plain(self.frame_index)
        extra = {} if alter is None else {"alter": alter}
        if self.deep is not None:
            self.deep.shallow = not self.is_full(t)
            extra["deep"] = self.deep
        models: dict[str, nn.Module | Chunks] = {"": self.layers}
        if control := self.control and self.control.at(t):
            extra["control"], models["control: "] = control, control.net
        eps = self.unet(z, t, text, attend, **extra)
        self.watch.look(eps, models, t, lambda: self.layers(z, t, text, fresh(attend), **extra))
        return eps


def fresh(attend: Attend) -> Attend:
    """The same attention, to be called in a second forward pass: one that records begins anew."""
    return attend.fresh() if hasattr(attend, "fresh") else attend
