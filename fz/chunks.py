"""Long clips: a UNet whose forward pass takes N frames at a time, with the result of taking all of them.

Three things cross frames (`fz.crossing`): clip GroupNorm, keys and values of other frames, temporal layers. With clip
statistics every norm needs all frames: activations stay whole and the layers with large workspaces take N frames each.
With statistics per frame, whole chunks run through the UNet and share keys and values only, so that memory does not
grow with the clip. Where layers multiply eight bits, results differ by as much as these do from float32's: the
activations' range is that of a call.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fz.attention import QK, Plain, Recorder, StopForward
from fz.crossing import OWN, Attending, Chunk, Reading, of_frames
from fz.errors import FzError
from fz.frames import ABSOLUTE, FrameIndex
from fz.fusion import Fuser
from fz.model.control import Control
from fz.model.deep import Deep
from fz.model.layers import Attend, Operands, Site, TextContext
from fz.model.some_frames import some_frames_at_once
from fz.model.swap import StandIn
from fz.model.unet import UNet
from fz.shard import Shard

Extra = Deep | Control  # of a clip, whose part is of some frames
Shared = dict[tuple[str, str], dict[int, Tensor]]  # (site, 'k' or 'v') -> frame -> (B, N, Nh, D)


class Chunks(StandIn):
    """Called as a UNet, `size` frames at a time. The given one stays as it is."""

    def __init__(self, unet: UNet, size: int):
        self.unet, self.size, self.config = unet, size, unet.config
        if unet.config.temporal and not unet.clip_norm:
            raise FzError(TUNED)
        self.layerwise = unet.clip_norm
        if self.layerwise:
            self.unet = some_frames_at_once(unet, size)

    def cut(self, index: FrameIndex, frames: int) -> "list[Chunk]":
        """The chunks of a clip in the order in which they run. Raises FzError where there is none for the index."""
        frames_of = runs(range(frames), self.size) if self.layerwise else order(index, frames, self.size)
        chunks = [Chunk(index, frames, own, everything=self.layerwise) for own in frames_of]
        for i, chunk in enumerate(chunks):
            chunk.following = chunks[i + 1 :]
        return chunks

    def __call__(
        self,
        z: Tensor,
        t: int | Tensor,
        text: TextContext,
        attend: Attend = Plain(OWN),  # noqa: B008 (frozen)
        **extra: Extra,
    ) -> Tensor:
        """eps of z (B, F, 4, h, w), as `UNet.forward`; attend: a Plain, Recorder or Fuser."""
        chunks = self.cut(attend.frame_index, z.shape[1])
        if len(chunks) == 1:
            return self.unet(z, t, text, attend, **extra)
        if not self.layerwise:
            return self._chunkwise(z, t, text, attend, chunks, extra)
        inner = [of_chunk(attend, chunk) for chunk in chunks]
        try:
            return self.unet(z, t, text, QueriesInTurn(chunks, inner), **extra)
        finally:
            # also after StopForward
            join(attend, chunks, [results(a) for a in inner])

    def _chunkwise(
        self, z: Tensor, t: int, text: TextContext, attend: Attending, chunks: "list[Chunk]", extra: dict[str, Extra]
    ) -> Tensor:
        eps, shared, found, stopped = z.new_empty(z.shape), {}, [], False
        for chunk in chunks:
            inner = of_chunk(attend, chunk)
            try:
                reading = Reading(inner, chunk, Earlier(chunk, shared))
                parts = {name: x.part(chunk.own) for name, x in extra.items()}
                eps[:, chunk.own] = self.unet(z[:, chunk.own], t, text, reading, **parts)
            except StopForward:
                stopped = True
            found.append(results(inner))
        join(attend, chunks, found)
        if stopped:
            raise StopForward
        return eps


TUNED = (
    "chunk: got a checkpoint with temporal layers and per-frame GroupNorm, expected one or the other: temporal "
    "layers read all frames, so chunks cannot run alone. Leave out --per-frame-norm or --chunk."
)


def order(index: FrameIndex, frames: int, size: int) -> list[list[int]]:
    """Which frames run together, so that each finds the keys it reads among its own and those of earlier chunks.
    Own and absolute frames: the absolute ones first. Earlier and own frames, and the first: as the clip runs. Else
    FzError.
    """
    if frames <= size:
        return [list(range(frames))]
    absolute = (
        FrameIndex(tuple(e for e in index.entries if e in ABSOLUTE)).table(Site("", "self", 1, 0), frames)[0].tolist()
    )
    anchors = sorted(set(absolute)) if any(e in ABSOLUTE for e in index.entries) else []
    relative = [e for e in index.entries if e not in ABSOLUTE and e != 0]
    if not relative:
        return runs(anchors, max(len(anchors), 1)) + runs([f for f in range(frames) if f not in anchors], size)
    if max(relative) < 0 and set(anchors) <= {0}:
        return runs(range(frames), size)
    got = f"chunk: got frame index {list(index.entries)} with per-frame GroupNorm"
    expected = "expected own and absolute frames (as 0,mid), or earlier frames and the first (as -1,first)"
    raise FzError(
        f"{got}, {expected}: no order of chunks has all keys that these read. Leave out --per-frame-norm or --chunk."
    )


def runs(frames, size: int) -> list[list[int]]:
    frames = list(frames)
    return [frames[i : i + size] for i in range(0, len(frames), size)]


def of_chunk(attend: Attending, chunk: Chunk) -> Attending:
    """The same attention of some frames: its masks and the source's operands are these frames' only."""
    inner = of_frames(attend, chunk, "chunk")
    if not isinstance(attend, Fuser):
        return inner
    qk = attend.qk.chunk(chunk) if isinstance(attend.qk, Deferred) else QKOfChunk(attend.qk, chunk)
    return replace(inner, qk=qk)


@dataclass
class QKOfChunk(Mapping):
    """Of kept queries a chunk's own, of kept keys those that it reads."""

    whole: QK
    chunk: Chunk

    def __getitem__(self, name: str) -> tuple[Tensor, ...]:
        q, *k = self.whole[name]
        if not k or self.chunk.everything:
            return (q[self.chunk.own], *k)
        # a site's name is all that a chunk knows it by once it has attended there
        return (q[self.chunk.own], k[0][self.chunk._seen[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


def results(attend: Attending) -> list[dict[str, Tensor | tuple[Tensor, ...]]]:
    """What an attention function has recorded, by site name."""
    return (
        [attend.qk, attend.maps]
        if isinstance(attend, Recorder)
        else [attend.target_maps]
        if isinstance(attend, Fuser)
        else []
    )


def join(attend: Attending, chunks: list[Chunk], found: list[list[dict]]) -> None:
    """Put what the chunks recorded side by side into `attend`, frames in the clip's order."""
    frames = [f for chunk in chunks for f in chunk.own]
    back = None if frames == sorted(frames) else torch.tensor(frames).argsort()

    def side_by_side(tensors: list[Tensor]) -> Tensor:
        whole = torch.cat(tensors)
        return whole if back is None else whole[back.to(whole.device)]

    for i, whole in enumerate(results(attend)):
        for name in list(found[0][i]):
            pieces = [of[i].pop(name) for of in found]
            several = isinstance(pieces[0], tuple)
            whole[name] = tuple(map(side_by_side, zip(*pieces, strict=True))) if several else side_by_side(pieces)


@dataclass
class QueriesInTurn:
    """Attention of whole activations, a chunk's queries at a time, with all keys."""

    chunks: list[Chunk]
    inner: list[Attending]

    def __call__(self, site: Site, x: Operands) -> Tensor:
        keys: dict[tuple, Tensor] = {}
        out, stopped = None, False
        for chunk, attend in zip(self.chunks, self.inner, strict=True):
            try:
                attended = attend(site, Queries(x, chunk, keys))
            except StopForward:
                stopped = True
                continue
            if out is None:
                out = attended.new_empty(len(attended), x.shape[1], *attended.shape[2:])
            out[:, chunk.own[0] : chunk.own[-1] + 1] = attended
        if stopped:
            raise StopForward
        return out


class Queries(Operands):
    """Operands of a chunk's queries and all keys, which are made once for all chunks."""

    def __init__(self, x: Operands, chunk: Chunk, keys: dict[tuple, Tensor]):
        own = slice(chunk.own[0], chunk.own[-1] + 1)
        super().__init__(x.layer, x.tokens[:, own], x.text)
        self.whole, self.own, self.keys = x, own, keys

    def k(self, branches: slice = slice(None)) -> Tensor:
        return self._once("k", branches)

    def v(self, branches: slice = slice(None)) -> Tensor:
        return self._once("v", branches)

    def _once(self, which: str, branches: slice) -> Tensor:
        key = (which, branches.start, branches.stop)
        if key not in self.keys:
            self.keys[key] = getattr(self.whole, which)(branches)
        return self.keys[key]


@dataclass
class Earlier:
    """The keys and values that earlier chunks left in `shared`, where later ones read them: `Others` of a chunk."""

    chunk: Chunk
    shared: Shared

    def with_others(self, site: Site, which: str, own: Tensor) -> Tensor:
        known = self.shared.get((site.name, which), {})
        lacking = [known[f] for f in self.chunk.lacks(site)]
        wanted = {f for chunk in self.chunk.following for f in chunk.lacks(site)}
        mine = {f: own[:, i].clone() for i, f in enumerate(self.chunk.own) if f in wanted}
        self.shared[site.name, which] = {f: x for f, x in known.items() if f in wanted} | mine
        return torch.cat([own, torch.stack(lacking, dim=1)], dim=1) if lacking else own


def qk_of(
    unet: UNet | Chunks | Shard,
    seen: Recorder,
    z: Tensor,
    t: int,
    text: TextContext,
    control: Control | None = None,
    whole: bool = False,
) -> "QK | Deferred":
    """What a Recorder keeps of a pass that it may break off; of chunks that run alone only when the same chunk is fused
    with it, unless the whole clip's is wanted.
    """
    alone = isinstance(unet, Chunks) and not unet.layerwise and not whole
    # frames that all others read are one chunk, however many they are
    if alone and len(unet.cut(seen.frame_index, z.shape[1])) > 1:
        return Deferred(unet.unet, seen, z, t, text, control)
    with contextlib.suppress(StopForward):
        unet(z, t, text, seen, **({} if control is None else {"control": control}))
    return seen.qk


@dataclass
class Deferred:
    """The source's queries and keys, a chunk at a time and no longer. Chunks are asked for in their order."""

    unet: UNet
    recorder: Recorder
    z: Tensor
    t: int
    text: TextContext
    control: Control | None
    shared: Shared = field(default_factory=dict)

    def chunk(self, chunk: Chunk) -> dict[str, tuple[Tensor, ...]]:
        seen = of_chunk(self.recorder, chunk)
        control = self.control and self.control.part(chunk.own)
        with contextlib.suppress(StopForward):
            reading = Reading(seen, chunk, Earlier(chunk, self.shared), keeps_all=True)
            self.unet(self.z[:, chunk.own], self.t, self.text, reading, control=control)
        return seen.qk
