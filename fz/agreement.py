"""What do processes that share a clip have to agree on? Which steps are done already: each step is computed together.

The first process reads the cache, the others get from it what it found.
"""

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor

from fz.ddim import Schedule
from fz.ranks import Alone
from fz.source import Source


def same_inversion(ranks: Alone, source: Source, schedule: Schedule, restored: int) -> int:
    """Put into all sources what the first process found of an inversion; returns how many steps that are."""
    if ranks.world == 1:
        return restored
    there = {t: on_cpu(source.left(t)) for t in source.maps} if ranks.leads else None
    restored, there = ranks.agree((restored, there))
    for t_prev, t in list(schedule.upward())[:restored]:
        source.restore(t_prev, t, there[t])
    return restored


def same_steps(ranks: Alone, steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the first process found of an edit, on the CPU."""
    return steps if ranks.world == 1 else ranks.agree([on_cpu(step) for step in steps])


def on_cpu(step: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.cpu() for name, x in step.items()}


@contextlib.contextmanager
def given_is_told(ranks: Alone, steps: int, of: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what all gave each other in the block, in so many steps of inversion or editing; nothing where nobody did."""
    before = ranks.given
    yield
    if ranks.world > 1 and steps:
        given = ranks.total(ranks.given - before)
        told = f"{given / steps / 1e6:.3f} MB a step of {of} ({given} bytes in {steps} steps)"
        say(f"shard: {ranks.world} processes gave each other {told}")
