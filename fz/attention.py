"""The attention of one timestep, plain or recorded.

Each is a function `attend(site, operands)` that the UNet's attention layers call. A recorder keeps what Algorithm 1
keeps of the source, but never a map that would be multiplied by V: queries and keys say the same in less memory. One
map is built, averaged over heads, at the 1/4 level: masks and pictures are made of it. Fused attention is `fusion.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fz import kernels
from fz.frames import FrameIndex, frame_table
from fz.model.layers import Operands, Site

MAP_STRIDE = 4  # masks come from the cross-attention whose feature map is 1/4 of the latent's side
FUSED_FROM_STRIDE = 2  # the paper fuses all but the full-size level; `--fuse full` fuses that too

QK = Mapping[str, tuple[Tensor, ...]]  # site name -> (q, k) of a self-attention, (q,) of a cross-attention


def least_stride(full: bool) -> int:
    """Of the feature maps that are fused. full: the full-size level is, too."""
    return 1 if full else FUSED_FROM_STRIDE


@dataclass(frozen=True)
class Plain:
    """Attention as the inflated model has it, nothing kept and nothing fused."""

    frame_index: FrameIndex

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.kind == "cross":
            return kernels.cross_attention(x.q(), x.k(), x.v())[0]
        return kernels.self_attention(x.q(), x.k(), x.v(), frame_table(self.frame_index, site, x))


@dataclass(frozen=True)
class Keep:
    """Of which sites a Recorder keeps queries and keys at one timestep, and in which dtype. Nothing, by default.

    least_stride: of the sites that are fused.
    """

    self_sites: bool = False
    cross_sites: bool = False
    dtype: torch.dtype | None = None
    least_stride: int = FUSED_FROM_STRIDE

    def wants(self, site: Site) -> bool:
        return site.stride >= self.least_stride and (self.self_sites if site.kind == "self" else self.cross_sites)

    @property
    def anything(self) -> bool:
        return self.self_sites or self.cross_sites

    def __or__(self, other: "Keep") -> "Keep":
        """What either keeps."""
        return Keep(
            self.self_sites or other.self_sites,
            self.cross_sites or other.cross_sites,
            self.dtype or other.dtype,
            min(self.least_stride, other.least_stride),
        )


class StopForward(Exception):
    """A Recorder has what it was asked for: the rest of the forward pass is not needed."""


@dataclass
class Recorder:
    """Plain attention of one timestep that keeps what fusion will need of one branch: c_src of Algorithm 1, and Q and K
    if asked.

    maps: the branch's cross-attention at each 1/4-level site, averaged over heads, (F, N, 77). qk: site name -> (q,
    k) or (q,). last: the name of a site at which the pass ends by raising StopForward, or None.
    """

    frame_index: FrameIndex
    branch: int = 0
    keep: Keep = Keep()
    last: str | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    qk: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if not site.fusible:
            return Plain(self.frame_index)(site, x)
        if site.name in self.maps or site.name in self.qk:
            raise RuntimeError(f"{site.name} was recorded twice in one forward pass")
        q, k = x.q(), x.k()
        if self.keep.wants(site):
            # the keys of a cross-attention are the prompt's, the same at every step
            operands = (q, k[:, x.own]) if site.kind == "self" else (q,)
            self.qk[site.name] = tuple(o[self.branch].to(self.keep.dtype or o.dtype, copy=True) for o in operands)
        if site.name == self.last:
            raise StopForward
        if site.kind == "self":
            return kernels.self_attention(q, k, x.v(), frame_table(self.frame_index, site, x))
        if site.stride != MAP_STRIDE:
            return kernels.cross_attention(q, k, x.v())[0]
        out, self.maps[site.name] = kernels.cross_attention(q, k, x.v(), map_branch=self.branch)
        return out

    def fresh(self) -> "Recorder":
        """The same before its forward pass: nothing recorded yet."""
        return replace(self, maps={}, qk={})

    def average(self) -> Tensor:
        """The cross-attention averaged over heads and 1/4-level layers, (F, N, 77), float32; N = h/4 · w/4 tokens."""
        return torch.stack([m.float() for m in self.maps.values()]).mean(0)
