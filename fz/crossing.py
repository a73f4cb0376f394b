"""What crosses frames, where only some of a clip's are computed: which others do they read, and how are these had?

One interface for frames that run after each other (`fz.chunks`) and on several processes (`fz.shard`): some frames'
attention asks its `Others` for keys and values of the rest. Clip GroupNorm and a tuned model's temporal layers cross
frames, too: in chunks these stay whole, on processes `fz.shard` has layers of their own for them.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fz.attention import Plain, Recorder
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.fusion import Fuser
from fz.model.layers import Attend, Operands, Site

Attending = Plain | Recorder | Fuser
OWN = FrameIndex(())


@dataclass
class Chunk:
    """Some frames of a clip that are computed together; takes a FrameIndex's place in the attention of these frames.

    everything: keys of all frames are there; else of these, and, after them, of the others that these read.
    """

    index: FrameIndex
    frames: int
    own: list[int]
    everything: bool = False
    following: "list[Chunk]" = field(default_factory=list, repr=False)
    _seen: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _tables: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def seen(self, site: Site) -> list[int]:
        """The frames whose keys and values are there at this site, in their order."""
        if self.everything:
            return list(range(self.frames))
        if site.name not in self._seen:
            read = set(self.index.table(site, self.frames)[self.own].flatten().tolist())
            self._seen[site.name] = self.own + sorted(read - set(self.own))
        return self._seen[site.name]

    def lacks(self, site: Site) -> list[int]:
        """Frames that these read and that are not theirs."""
        return self.seen(site)[len(self.own) :]

    def table(self, site: Site, frames: int) -> Tensor:
        """(own, R) int64: places in `seen` of the frames that each own frame attends to; made once for each site."""
        if site.name not in self._tables:
            place = torch.zeros(self.frames, dtype=torch.int64)
            seen = self.seen(site)
            place[seen] = torch.arange(len(seen))
            self._tables[site.name] = place[self.index.table(site, self.frames)[self.own]]
        return self._tables[site.name]


class Others(Protocol):
    """Where the keys and values of frames come from that are not a chunk's own."""

    def with_others(self, site: Site, which: str, own: Tensor) -> Tensor:
        """own (B, own frames, N, Nh, D), the keys ('k') or values ('v') of a site, followed by those of the frames that
        the chunk lacks, in their order.
        """


def of_frames(attend: Attending, chunk: Chunk, what: str) -> Attending:
    """The same attention of some frames, all but what is kept of the source. what: for errors, who cuts the clip."""
    if isinstance(attend, Plain):
        return Plain(chunk)
    if isinstance(attend, Recorder):
        return replace(attend, frame_index=chunk, maps={}, qk={})
    if attend.hides_object:
        raise FzError(
            f"{what}: got an edit that removes an object, expected one without: what hides it spans all frames. Leave "
            f"out --{what}."
        )
    masks = attend.masks and {stride: mask[chunk.own] for stride, mask in attend.masks.items()}
    return replace(attend, frame_index=chunk, masks=masks)


@dataclass
class Reading:
    """Attention of one chunk, whose keys and values are its own and those that its `others` have. keeps_all: a Recorder
    keeps all keys that the chunk reads, rather than its own.
    """

    inner: Attend
    chunk: Chunk
    others: Others
    keeps_all: bool = False

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.kind == "cross":
            return self.inner(site, x)
        return self.inner(site, ReadingOperands(x, site, self))


class ReadingOperands(Operands):
    """A chunk's operands; its keys and values are followed by those of other frames that it reads."""

    def __init__(self, x: Operands, site: Site, reading: Reading):
        super().__init__(x.layer, x.tokens, x.text)
        self.site, self.others = site, reading.others
        # whoever keeps operands by the site's name looks up there what was seen
        reading.chunk.seen(site)
        self.own = slice(None) if reading.keeps_all else slice(len(reading.chunk.own))

    def k(self, branches: slice = slice(None)) -> Tensor:
        return self.others.with_others(self.site, "k", super().k(branches))

    def v(self, branches: slice = slice(None)) -> Tensor:
        return self.others.with_others(self.site, "v", super().v(branches))
