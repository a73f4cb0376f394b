"""Attention with gradients, for training the miniature: maps only where masks are made of them, elsewhere whatever is
fastest: PyTorch's fused kernel, or on a CPU in bfloat16 maps of a few pictures at a time, which stay in its cache.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.attention import MAP_STRIDE
from fz.frames import FrameIndex, frame_table
from fz.model.layers import Operands, Site

CACHED = 2**21  # elements of the maps that are worked on together: 4 MB


@dataclass
class TrainingAttention:
    """What a UNet's layers call in training.

    maps: of the last forward pass, (B, F, N, L) each, averaged over heads.
    """

    frame_index: FrameIndex

    def __post_init__(self):
        self.maps: list[Tensor] = []

    def __call__(self, site: Site, x: Operands) -> Tensor:
        q, k, v = (o.transpose(-3, -2) for o in (x.q(), x.k(), x.v()))  # (B, F, Nh, N, D); of a prompt (B, Nh, L, D)
        if site.kind == "cross":
            k, v = (o[:, None].expand(-1, q.shape[1], -1, -1, -1) for o in (k, v))
            if site.stride == MAP_STRIDE:
                s = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
                self.maps.append(s.float().mean(2))
                return (s.to(v.dtype) @ v).transpose(-3, -2)
        # a single picture is its own middle frame: keys read once weigh as keys read twice
        elif q.shape[1] > 1:
            table = frame_table(self.frame_index, site, x)
            k, v = (o[:, table].transpose(2, 3).flatten(3, 4) for o in (k, v))  # (B, F, Nh, R·N, D)
        return attended(q, k, v).transpose(-3, -2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of (B, F, Nh, N, D)."""
    lead, width = q.shape[:3], q.shape[-1]
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return AttentionByMaps.apply(*(o.flatten(0, 2) for o in (q, k, v))).unflatten(0, lead)
    # heads padded to a multiple of 16: the fused kernel's fast way on a CPU
    padded = (F.pad(o, (0, -width % 16)).flatten(0, 1) for o in (q, k, v))
    return F.scaled_dot_product_attention(*padded, scale=width**-0.5).unflatten(0, lead[:2])[..., :width]


class AttentionByMaps(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v of (n, N, D), and its gradients, by maps of a few of the n at a time.

    Two to three times as fast as the fused kernel in bfloat16 on CPUs that multiply it natively (bench/LOG.md).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale, together = q.shape[-1] ** -0.5, max(1, CACHED // (q.shape[-2] * k.shape[-2]))
        maps, out = [], []
        with torch.autocast("cpu", enabled=False):  # which would make maps float32
            for some_q, some_k, some_v in zip(*(o.split(together) for o in (q, k, v)), strict=True):
                maps.append(torch.softmax(torch.bmm(some_q, some_k.mT).mul_(scale), -1))
                out.append(torch.bmm(maps[-1], some_v))
        ctx.save_for_backward(q, k, v, *maps)
        ctx.together = together
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *maps = ctx.saved_tensors
        parts = (o.split(ctx.together) for o in (q, k, v, gradient.contiguous()))
        of_q, of_k, of_v = [], [], []
        for some_q, some_k, some_v, g, s in zip(*parts, maps, strict=True):
            of_v.append(torch.bmm(s.mT, g))
            of_s = torch._softmax_backward_data(torch.bmm(g, some_v.mT), s, -1, s.dtype).mul_(q.shape[-1] ** -0.5)
            of_q.append(torch.bmm(of_s, some_k))
            of_k.append(torch.bmm(of_s.mT, some_q))
        return torch.cat(of_q), torch.cat(of_k), torch.cat(of_v)
