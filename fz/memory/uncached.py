"""An inversion that is in no cache: it answers `fz.memory.inversions.Inversion`'s questions, and writes no file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fz.ddim import Schedule
from fz.source import Source

NOWHERE = Path("nowhere")


class NoLog:
    """A log of steps that has none."""

    folder = NOWHERE

    def put(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        pass

    def get(self, step: int) -> None:
        return None


class Uncached:
    """For a Python program that named no cache, whose queries and keys cannot go to disk, and for a dry run, which asks
    how much room there is. operands: where they would go.
    """

    folder = NOWHERE

    def __init__(self, operands: Path = NOWHERE):
        self.operands = operands

    def z0(self) -> None:
        return None

    def restore(self, source: Source, schedule: Schedule) -> int:
        return 0

    def save(self, done: int, source: Source, schedule: Schedule) -> None:
        pass

    def edit_log(self, key: str) -> NoLog:
        return NoLog()

    def finished(self) -> None:
        pass
