"""What do processes that share a clip have to agree on? Which steps are done already: each step is computed together.

The first process reads the cache, the others get from it what it found.
"""

import torch
from torch import Tensor

from fz.ddim import Schedule
from fz.ranks import Alone
from fz.source import Source


def same_inversion(ranks: Alone, source: Source, schedule: Schedule, restored: int) -> int:
    """Put into all sources what the first process found of an inversion; returns how many steps that are."""
    if ranks.world == 1:
        return restored
    there = {t: (source.latents[t].cpu(), source.maps[t].cpu()) for t in source.maps} if ranks.leads else None
    restored, there = ranks.agree((restored, there))
    device = source.embedding.device
    for t_prev, t in list(schedule.upward())[:restored]:
        source.latents[t], source.maps[t] = (x.to(device) for x in there[t])
        source.inputs[t] = source.latents[t_prev]
    return restored


def same_latents(ranks: Alone, latents: list[Tensor], device: torch.device) -> list[Tensor]:
    """The first process's."""
    if ranks.world == 1:
        return latents
    return [z.to(device) for z in ranks.agree([z.cpu() for z in latents])]


def given_since(ranks: Alone, before: int, steps: int, of: str) -> list[str]:
    """A line of what all gave each other in so many steps of inversion or editing; none where nobody did."""
    if ranks.world == 1 or not steps:
        return []
    given = ranks.total(ranks.given - before)
    told = f"{given / steps / 1e6:.3f} MB a step of {of} ({given} bytes in {steps} steps)"
    return [f"shard: {ranks.world} processes gave each other {told}"]
