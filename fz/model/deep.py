"""`--reuse N`: at which steps is the whole UNet run, and what do the steps between take from there?

DeepCache (Ma et al. 2023, arXiv 2312.00858), cut where FateZero's own boundary is: only the full-size level, which the
paper does not fuse, is computed at every step; what comes from below it is the last full step's. A shallow step fuses
nothing, and needs no queries and keys of the source.
"""

from dataclasses import dataclass, field

from torch import Tensor

# a shallow step's time, of a full one's, at 256² and 512² (bench/LOG.md): the full-size level, its last layer
SHALLOW = {False: 0.4, True: 0.1}


@dataclass(frozen=True)
class Reuse:
    """Full steps are every N-th edit step, from the first, and the last two; inversion's are the same timesteps.

    Both loops so begin with a full step. Inversion begins at t = 1, where z has next to no noise: what is seen there is
    no help to the step after it, which is full, too (bench/LOG.md). outer: a shallow step computes the last decoder
    layer alone, not all of the full-size level.
    """

    every: int = 1
    outer: bool = False

    @classmethod
    def of(cls, setting: int | str) -> "Reuse":
        """From the setting: 3, or '3:outer'."""
        every, _, outer = str(setting).partition(":")
        return cls(int(every), bool(outer))

    def is_full(self, k: int, steps: int) -> bool:
        return k % self.every == 0 or k >= steps - 2

    def before(self, k: int, steps: int) -> int:
        """The full step from which edit step k takes its deep features: itself, or the last one that sampling did."""
        return k if self.is_full(k, steps) else k - k % self.every

    def after(self, k: int, steps: int) -> int:
        """The same of inversion, which comes from the last edit step."""
        return k if self.is_full(k, steps) else min(k - k % self.every + self.every, steps - 2)

    def work(self, steps: int) -> float:
        """What a step takes on average, of a full one."""
        full = sum(self.is_full(k, steps) for k in range(steps)) / steps
        return full + (1 - full) * SHALLOW[self.outer]

    def served_by(self, k: int, steps: int) -> range:
        """The edit steps that take their deep features from full step k, itself included."""
        return range(k, next((j for j in range(k + 1, steps) if self.is_full(j, steps)), steps))


@dataclass
class Deep:
    """The deep features of a loop's last full step: (B·F, C, h, w), of each branch its own, as the decoder's outermost
    layers take them.

    outer: how far out, see `Reuse`. shallow: the next pass takes the features; else it leaves them here. parts: those
    of chunks that run alone, by their frames.
    """

    outer: bool = False
    shallow: bool = False
    features: Tensor | None = None
    parts: dict[tuple[int, ...], "Deep"] = field(default_factory=dict)

    def layers(self, layers_per_block: int) -> int:
        """How many decoder layers, the outermost ones, a shallow pass computes."""
        return 1 if self.outer else layers_per_block + 1

    def part(self, frames: list[int]) -> "Deep":
        """Of a chunk that runs alone."""
        part = self.parts.setdefault(tuple(frames), Deep(self.outer))
        part.shallow = self.shallow
        return part

    def taken(self, batch: int) -> Tensor:
        """The features, for a pass over so many frames of all branches."""
        if self.features is None or len(self.features) != batch:
            got = "none" if self.features is None else len(self.features)
            raise RuntimeError(f"deep features of {got} frames are there, {batch} are asked for: no full step before")
        return self.features
