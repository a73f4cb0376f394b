"""Fused attention by other ways than `fz.kernels`', as a fast engineer would write them in PyTorch, to compare with.

The arguments are those of `fz.kernels` for one branch that is fused. Each function is one way; `self_ways` and
`cross_ways` name them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.sites import BenchSite
from fz import kernels
from fz.frames import FrameIndex
from fz.model.layers import Site

Way = Callable[[], Tensor]


@dataclass(frozen=True)
class SelfCase:
    """q, k, v, q_src, k_src: (F, N, Nh, D); frames (F, R); mask (F, N) bool, True = edited."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_src: Tensor
    k_src: Tensor
    frames: Tensor
    mask: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "SelfCase":
        """With the floating-point operands changed."""
        return SelfCase(*map(change, (self.q, self.k, self.v, self.q_src, self.k_src)), self.frames, self.mask)


@dataclass(frozen=True)
class CrossCase:
    """q, q_src: (F, N, Nh, D); k, k_src, v: (L, Nh, D); source_weights (L, L), edit_weights (L,): of maps' columns."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_src: Tensor
    k_src: Tensor
    source_weights: Tensor
    edit_weights: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "CrossCase":
        operands = (self.q, self.k, self.v, self.q_src, self.k_src, self.source_weights, self.edit_weights)
        return CrossCase(*map(change, operands))


def projections(*shape: int, generator: torch.Generator) -> Tensor:
    """A projection of random tokens as a linear layer gives it, in float64: (…, Nh, D) contiguous, head by head."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def self_case(site: BenchSite, dtype: torch.dtype, device: torch.device, tokens: int | None = None) -> SelfCase:
    """Random operands of a site, or of one with fewer tokens; the mask is a disc that moves, two fifths of a frame."""
    n, f = tokens or site.tokens, site.frames
    generator = torch.Generator().manual_seed(site.side * 1000 + site.d)
    x = [projections(f, n, site.heads, site.d, generator=generator).to(device, dtype) for _ in range(5)]
    entries = (0, "mid", "first", "last")[: site.anchors] if site.anchors <= 4 else (0, *range(1, site.anchors))
    frames = FrameIndex(entries).table(Site(site.name, "self", site.stride, site.channels), f).to(device)
    return SelfCase(*x, frames, disc(f, n).to(device))


def disc(frames: int, tokens: int) -> Tensor:
    """(F, N) bool: a disc of radius 0.36 of the side, walking right. Of a map that is not square, its first tokens."""
    side = max(1, -int(-(tokens**0.5) // 1))
    o = (torch.arange(side) + 0.5) / side
    centre = torch.linspace(0.4, 0.6, frames)[:, None, None]
    inside = (o[None, None, :] - centre) ** 2 + (o[None, :, None] - 0.5) ** 2 < 0.36**2
    return inside.flatten(1)[:, :tokens].contiguous()


def cross_case(site: BenchSite, dtype: torch.dtype, device: torch.device, tokens: int | None = None) -> CrossCase:
    """Random operands; one word in ten is new (refinement)."""
    n, l = tokens or site.tokens, site.keys
    generator = torch.Generator().manual_seed(site.side * 1000 + site.d)
    shapes = ((site.frames, n), (l,), (l,), (site.frames, n), (l,))
    x = [projections(*shape, site.heads, site.d, generator=generator).to(device, dtype) for shape in shapes]
    kept = (torch.arange(l) % 10 != 3).double()
    return CrossCase(*x, torch.diag(kept).to(device, dtype), (1 - kept).to(device, dtype))


def head_major(x: Tensor) -> Tensor:
    """(F, N, Nh, D) -> (F·Nh, N, D), contiguous: what baddbmm wants."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def anchored(x: Tensor, frames: Tensor) -> Tensor:
    """Keys of each frame's anchors, side by side: (F, N, Nh, D) -> (F, R·N, Nh, D)."""
    return x[frames].flatten(1, 2)


def map_of(q: Tensor, k: Tensor, in_place: bool = False) -> Tensor:
    """softmax(q kᵀ/√D) of (B, Nq, D) and (B, Nk, D)."""
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, -1, out=logits) if in_place else logits.softmax(-1)


def self_maps(x: SelfCase) -> Tensor:
    """Both maps of all frames, blended, times the values: Algorithm 2 as it stands."""
    f, _, heads, _ = x.q.shape
    k, v, k_src = (head_major(anchored(o, x.frames)) for o in (x.k, x.v, x.k_src))
    s_src, s_edit = map_of(head_major(x.q_src), k_src), map_of(head_major(x.q), k)
    s = torch.where(heads_mask(x.mask, heads), s_edit, s_src)
    return torch.bmm(s, v).unflatten(0, (f, heads)).transpose(1, 2)


def self_maps_small(x: SelfCase) -> Tensor:
    """The same with the least memory that maps allow: a frame at a time, softmax and blend in place."""
    f, _, heads, _ = x.q.shape
    k, v, k_src = (anchored(o, x.frames) for o in (x.k, x.v, x.k_src))
    out = torch.empty_like(x.v)
    for i in range(f):
        span = slice(i, i + 1)
        s_src = map_of(head_major(x.q_src[span]), head_major(k_src[span]), in_place=True)
        s_edit = map_of(head_major(x.q[span]), head_major(k[span]), in_place=True)
        torch.where(heads_mask(x.mask[span], heads), s_edit, s_src, out=s_edit)
        out[i] = torch.bmm(s_edit, head_major(v[span])).transpose(0, 1)
    return out


def heads_mask(mask: Tensor, heads: int) -> Tensor:
    """(F, N) -> (F·Nh, N, 1)."""
    return mask.repeat_interleave(heads, 0)[:, :, None]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """scaled_dot_product_attention of token-major operands, (B, N, Nh, D)."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def self_two(x: SelfCase) -> Tensor:
    """Two attentions, each over every row, and a blend of their results."""
    k, v, k_src = (anchored(o, x.frames) for o in (x.k, x.v, x.k_src))
    return torch.where(x.mask[:, :, None, None], sdpa(x.q, k, v), sdpa(x.q_src, k_src, v))


def self_this(x: SelfCase) -> Tensor:
    return kernels.self_attention(x.q[None], x.k[None], x.v[None], x.frames, q_src=x.q_src, k_src=x.k_src, mask=x.mask)[
        0
    ]


def self_this_unmixed(x: SelfCase) -> Tensor:
    """No row is edited."""
    return kernels.self_attention(x.q[None][:0], x.k[None][:0], x.v[None], x.frames, q_src=x.q_src, k_src=x.k_src)[0]


def self_ways(x: SelfCase) -> dict[str, Way]:
    """Every way to the fused result, then those to the unmixed one."""
    k_laid, v_laid = anchored(x.k_src, x.frames), anchored(x.v, x.frames)
    return {
        "maps": lambda: self_maps(x),
        "maps in place, a frame at a time": lambda: self_maps_small(x),
        "two attentions + blend": lambda: self_two(x),
        "this": lambda: self_this(x),
        "this, unmixed": lambda: self_this_unmixed(x),
        "one plain attention, keys laid out": lambda: sdpa(x.q_src, k_laid, v_laid),
    }


def cross_maps(x: CrossCase) -> Tensor:
    """Both maps, their columns mixed, times the values."""
    f, _, heads, _ = x.q.shape
    k, v, k_src = (o.transpose(0, 1).repeat(f, 1, 1) for o in (x.k, x.v, x.k_src))
    c_src, c_edit = map_of(head_major(x.q_src), k_src), map_of(head_major(x.q), k)
    c = torch.matmul(c_src, x.source_weights).addcmul_(c_edit, x.edit_weights)
    return torch.bmm(c, v).unflatten(0, (f, heads)).transpose(1, 2)


def mixed_values(x: CrossCase) -> tuple[Tensor, Tensor]:
    """The values that the source's and the edit's columns meet (`fz.fusion.Fuser.cross_fusion`)."""
    return torch.einsum("ij,jhd->ihd", x.source_weights, x.v), x.v * x.edit_weights[:, None, None]


def cross_two(x: CrossCase) -> Tensor:
    """Two attentions with mixed values and a sum."""
    v_src, v = mixed_values(x)
    q, q_src = x.q.flatten(0, 1)[None], x.q_src.flatten(0, 1)[None]
    return (sdpa(q_src, x.k_src[None], v_src[None]) + sdpa(q, x.k[None], v[None])).view(x.q.shape)


def cross_this(x: CrossCase) -> Tensor:
    v_src, v = mixed_values(x)
    return kernels.cross_attention(x.q[None], x.k[None], v[None], q_src=x.q_src, k_src=x.k_src, v_src=v_src)[0][0]


def cross_ways(x: CrossCase) -> dict[str, Way]:
    return {
        "maps": lambda: cross_maps(x),
        "two attentions + blend": lambda: cross_two(x),
        "this": lambda: cross_this(x),
    }
