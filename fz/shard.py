"""`--shard`: how do several processes compute one clip, some frames each, with the result of one?

Each computes its frames through the whole UNet. What crosses frames is given from process to process: keys and values
of frames that others read (`fz.crossing`), the moments of clip GroupNorm, and, in tuned models, what the layers over
time read. The predicted noise and the averaged maps, both small, are gathered: latents are whole everywhere, and the
loops of `fz.edit` do not know how many processes there are.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz.attention import Plain, Recorder, StopForward
from fz.crossing import OWN, Attending, Chunk, Reading, of_frames
from fz.fusion import Fuser
from fz.model.deep import Deep
from fz.model.layers import ClipGroupNorm, LowRankTemporalConv, Site, TemporalAttention, TextContext
from fz.model.swap import StandIn, swapped
from fz.model.unet import UNet
from fz.ranks import Alone


class Shard(StandIn):
    """Called as a UNet, with latents of all frames, by all processes together. The given UNet stays as it is."""

    def __init__(self, unet: UNet, ranks: Alone):
        self.ranks, self.config, self.clip_norm = ranks, unet.config, unet.clip_norm
        self.clip = ShardedClip(ranks)
        self.unet = swapped(unet, self.over_ranks)
        self.exchanges: dict[tuple, Exchange] = {}

    def over_ranks(self, name: str, layer: nn.Module) -> nn.Module | None:
        """What takes the place of a layer that crosses frames."""
        # the norm of a transformer sees one frame
        if isinstance(layer, ClipGroupNorm) and self.clip_norm and ".attentions." not in f".{name}":
            return NormOverRanks(layer, self.clip)
        if isinstance(layer, LowRankTemporalConv):
            return LowRankOverRanks(layer, self.clip)
        if isinstance(layer, nn.Conv1d):
            return ConvOverRanks(layer, self.clip)
        return AttentionOverRanks(layer, self.clip) if isinstance(layer, TemporalAttention) else None

    def __call__(
        self,
        z: Tensor,
        t: int | Tensor,
        text: TextContext,
        attend: Attending = Plain(OWN),  # noqa: B008 (frozen)
        deep: Deep | None = None,
    ) -> Tensor:
        """eps of z (B, F, 4, h, w), as `UNet.forward`; attend: a Plain, Recorder or Fuser, which afterwards has maps of
        all frames, averaged, and of queries and keys what this process's frames need. deep: of these frames.
        """
        frames = self.clip.frames = z.shape[1]
        key = (attend.frame_index, frames)
        if key not in self.exchanges:
            self.exchanges = {key: Exchange(attend.frame_index, frames, self.ranks)}
        exchange = self.exchanges[key]
        inner, eps = of_frames(attend, exchange.chunk, "shard"), None
        try:
            reading = Reading(inner, exchange.chunk, exchange, keeps_all=True)
            eps = self.unet(z[:, self.ranks.own(frames)], t, text, reading, deep=deep)
        except StopForward:
            pass
        if isinstance(attend, Recorder):
            attend.qk.update(inner.qk)
            self.gather_maps(inner.maps, attend.maps)
        elif isinstance(attend, Fuser):
            self.gather_maps(inner.target_maps, attend.target_maps)
        if eps is None:
            raise StopForward
        return self.ranks.gather(eps, frames, 1)

    def gather_maps(self, own: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        """The mean of the maps, under one name: all that is ever made of them."""
        if own:
            mean = torch.stack([m.float() for m in own.values()]).mean(0)
            whole["mean"] = self.ranks.gather(mean, self.clip.frames)


@dataclass
class ShardedClip:
    """What the layers know of the clip that is computed: how many frames it has, and on which processes."""

    ranks: Alone
    frames: int = 1


@dataclass
class Exchange:
    """Which keys and values go where, for one frame index. `fz.crossing.Others` of this process's frames."""

    index: object
    frames: int
    ranks: Alone
    routes: dict[str, tuple[dict[int, list[int]], dict[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chunks = [Chunk(self.index, self.frames, list(block)) for block in self.ranks.blocks(self.frames)]
        self.chunk = self.chunks[self.ranks.rank]

    def route(self, site: Site) -> tuple[dict[int, list[int]], dict[int, int]]:
        """(process -> which of the own frames it lacks, process -> how many it has that this one lacks)."""
        if site.name not in self.routes:
            rank, lacking = self.ranks.rank, [set(chunk.lacks(site)) for chunk in self.chunks]
            out = {r: [i for i, f in enumerate(self.chunk.own) if f in lacking[r]] for r in range(len(self.chunks))}
            into = {r: len(lacking[rank] & set(chunk.own)) for r, chunk in enumerate(self.chunks)}
            self.routes[site.name] = {r: w for r, w in out.items() if w}, {r: n for r, n in into.items() if n}
        return self.routes[site.name]

    def with_others(self, site: Site, which: str, own: Tensor) -> Tensor:
        """Blocks of frames ascend with processes, so that what comes is in its order."""
        out, into = self.route(site)
        shapes = {r: (own.shape[0], count, *own.shape[2:]) for r, count in into.items()}
        got = self.ranks.swap({r: own[:, which] for r, which in out.items()}, shapes, own)
        return torch.cat([own, *(got[r] for r in sorted(got))], dim=1) if got else own


class NormOverRanks(ClipGroupNorm):
    """ClipGroupNorm of a clip whose frames are on several processes: their moments are summed."""

    def __init__(self, norm: ClipGroupNorm, clip: ShardedClip):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias, self.clip = norm.weight, norm.bias, clip

    def forward(self, x: Tensor, frames: int, time: Tensor | None = None, silu: bool = False) -> Tensor:
        """As ClipGroupNorm; frames: this process's."""
        if time is not None:
            x = x + time[:, :, None, None]
        grouped = x.unflatten(0, (-1, frames)).unflatten(2, (self.num_groups, -1))  # (B, F, G, C / G, H, W)
        # float64 sums of a few numbers: squares of large means cancel in float32
        variance, mean = torch.var_mean(grouped.float(), dim=(1, 3, 4, 5), correction=0)
        mean, variance = mean.double(), variance.double()
        sums = torch.stack([mean, variance + mean**2]) * frames
        mean, square = self.clip.ranks.sum(sums) / self.clip.frames  # (B, G)
        scale = (square - mean**2).clamp(min=0).add(self.eps).rsqrt()
        # one factor and one summand a channel
        width = x.shape[1] // self.num_groups
        factor = scale.repeat_interleave(width, 1) * self.weight.double()
        summand = self.bias.double() - mean.repeat_interleave(width, 1) * factor
        factor, summand = (p.float().repeat_interleave(frames, 0)[:, :, None, None] for p in (factor, summand))
        out = torch.addcmul(summand, x.float(), factor).to(x.dtype)
        return F.silu(out, inplace=True) if silu else out


def with_neighbours(x: Tensor, clip: ShardedClip) -> Tensor:
    """x (P, C, own frames) between the last frame before and the first after; zeros at the clip's ends."""
    ranks = clip.ranks
    before, after = ranks.rank - 1, ranks.rank + 1
    edges = {r: edge for r, edge in ((before, x[..., :1]), (after, x[..., -1:])) if 0 <= r < ranks.world}
    got = ranks.swap(edges, {r: edge.shape for r, edge in edges.items()}, x)
    zeros = torch.zeros_like(x[..., :1])
    return torch.cat([got.get(before, zeros), x, got.get(after, zeros)], dim=-1)


class ConvOverRanks(nn.Module):
    """A convolution of length 3 over time."""

    def __init__(self, conv: nn.Conv1d, clip: ShardedClip):
        super().__init__()
        self.conv, self.clip = conv, clip

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(with_neighbours(x, self.clip), self.conv.weight, self.conv.bias)


class LowRankOverRanks(nn.Module):
    """Two of them, one after the other: the second one's neighbours are of few channels."""

    def __init__(self, layer: LowRankTemporalConv, clip: ShardedClip):
        super().__init__()
        self.down, self.up = ConvOverRanks(layer.down, clip), ConvOverRanks(layer.up, clip)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


class AttentionOverRanks(nn.Module):
    """Temporal attention: processes change from some frames of all pixels to all frames of some pixels, and back."""

    def __init__(self, layer: TemporalAttention, clip: ShardedClip):
        super().__init__()
        self.layer, self.clip = layer, clip

    def forward(self, tokens: Tensor) -> Tensor:
        ranks, (branches, _, pixels, channels) = self.clip.ranks, tokens.shape
        frames = ranks.blocks(self.clip.frames)
        ends = [pixels * r // ranks.world for r in range(ranks.world + 1)]
        parts = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        others = [r for r in range(ranks.world) if r != ranks.rank]
        mine = parts[ranks.rank]
        own, count = frames[ranks.rank], mine.stop - mine.start
        got = ranks.swap(
            {r: tokens[:, :, parts[r]] for r in others},
            {r: (branches, len(frames[r]), count, channels) for r in others}, tokens,
        ) | {ranks.rank: tokens[:, :, mine]}  # fmt: skip
        out = self.layer(torch.cat([got[r] for r in range(ranks.world)], dim=1))
        back = ranks.swap(
            {r: out[:, frames[r].start : frames[r].stop] for r in others},
            {r: (branches, len(own), parts[r].stop - parts[r].start, channels) for r in others}, out,
        ) | {ranks.rank: out[:, own.start : own.stop]}  # fmt: skip
        return torch.cat([back[r] for r in range(ranks.world)], dim=2)
