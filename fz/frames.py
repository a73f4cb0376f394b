"""Which frames does a frame attend to (FateZero eq. 8)? Settings use it too: torch is imported only where a table is
made.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fz.errors import FzError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from fz.model.layers import Operands, Site

ABSOLUTE = ("first", "mid", "middle", "last")


@dataclass(frozen=True)
class FrameIndex:
    """Which frames' keys and values a frame reads (eq. 8): integers relative to it (0 = own), words absolute.

    Layers narrower than `least_channels` read their own frame only; so does an empty list.
    """

    entries: tuple[int | str, ...] = (0, "mid")
    least_channels: int = 0

    def __post_init__(self):
        if not isinstance(self.entries, (tuple, list)):
            raise FzError(f"frame index: got {self.entries!r}, expected a list of frames, as [0, 'mid'].")
        object.__setattr__(self, "entries", tuple(self.entries))
        for entry in self.entries:
            if not (entry in ABSOLUTE or (isinstance(entry, int) and not isinstance(entry, bool))):
                expected = f"expected integers (relative) or one of {', '.join(ABSOLUTE)}"
                raise FzError(f"frame index: got {entry!r}, {expected}.{suggest(str(entry), ABSOLUTE)}")

    def table(self, site: "Site", frames: int) -> "Tensor":
        """(F, R) int64: the frames that each frame attends to at this site. Relative frames are clipped at the ends of
        the clip.
        """
        return _table(() if site.channels < self.least_channels else self.entries, frames)


@functools.lru_cache(maxsize=64)
def _table(entries: tuple[int | str, ...], frames: int) -> "Tensor":
    import torch

    absolute = {"first": 0, "mid": (frames - 1) // 2, "middle": (frames - 1) // 2, "last": frames - 1}
    # a table that outlives inference mode must be an ordinary tensor
    with torch.inference_mode(False):
        own = torch.arange(frames)
        columns = [
            torch.full_like(own, absolute[e]) if e in absolute else (own + e).clamp(0, frames - 1)
            for e in entries or (0,)
        ]
        return torch.stack(columns, dim=1)


def frame_table(frame_index: FrameIndex, site: "Site", x: "Operands") -> "Tensor":
    """(F, R) int64 on the CPU: the frames whose keys and values each frame of x reads at this site.

    Kernels look its numbers up: on a GPU each of them would be a synchronisation.
    """
    return frame_index.table(site, x.shape[1])
