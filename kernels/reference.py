"""Attention that builds its maps: Algorithm 2 word for word, what the other versions are measured against.

In whatever dtype the operands have, float64 included; one frame at a time, so that it fits where the maps of a clip
would not. The arguments are those of `fz.kernels.self_attention` and `fz.kernels.cross_attention`.
"""

import torch
from torch import Tensor


def attention_map(q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D): (Nq, Nh, D), (Nk, Nh, D) -> (Nh, Nq, Nk). key_mask (Nk,) bool: False keys weigh nothing."""
    logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    if key_mask is None:
        return logits.softmax(-1)
    # a row without a key has softmax of nothing but -inf: zeros rather than NaN
    return logits.masked_fill(~key_mask, float("-inf")).softmax(-1).nan_to_num(0.0)


def self_attention(q, k, v, frames, *, q_src=None, k_src=None, mask=None, key_mask=None) -> Tensor:
    """See `fz.kernels.self_attention`."""
    out = []
    last = len(v) - 1
    for b in range(len(v)):
        for i, anchors in enumerate(frames.tolist()):
            visible = None if key_mask is None else key_mask[b, anchors].flatten()
            fused = b == last and q_src is not None
            if not fused:
                s = attention_map(q[b, i], k[b, anchors].flatten(0, 1), visible)
            else:
                s = attention_map(q_src[i].to(v), k_src[anchors].flatten(0, 1).to(v), visible)
                if mask is not None:
                    s_edit = attention_map(q[b, i], k[b, anchors].flatten(0, 1), visible)
                    m = mask[i][None, :, None].to(s.dtype)
                    s = m * s_edit + (1 - m) * s
            out.append(torch.einsum("hqk,khd->qhd", s, v[b, anchors].flatten(0, 1)))
    return torch.stack(out).unflatten(0, (len(v), len(frames)))


def cross_attention(
    q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None
) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`."""
    last = len(v) - 1
    mapped = None if map_branch is None else range(len(q))[map_branch]
    out, maps = [], []
    for b in range(len(v)):
        for i in range(q.shape[1]):
            row = 0
            if b < len(q):
                c = attention_map(q[b, i], k[b])
                row = torch.einsum("hqk,khd->qhd", c, v[b])
                if b == mapped:
                    maps.append(c.mean(0))
            if b == last and q_src is not None:
                c_src = attention_map(q_src[i].to(v), k_src.to(v))
                row = row + torch.einsum("hqk,khd->qhd", c_src, v_src)
            out.append(row)
    out = torch.stack(out).unflatten(0, (len(v), q.shape[1]))
    if mapped is None:
        return out, None
    maps = torch.stack(maps)
    return out, maps if map_weights is None else maps @ map_weights.to(maps)


def group_norm(x, frames, groups, weight, bias, eps, *, time=None, silu=False) -> Tensor:
    """See `fz.kernels.group_norm`; the textbook's formula, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if time is not None:
        wide = wide + time.to(wide)[:, :, None, None]
    # (samples, groups, frames, channels of a group, H, W)
    grouped = wide.unflatten(0, (-1, frames)).unflatten(2, (groups, -1)).transpose(1, 2)
    gap = grouped - grouped.mean((2, 3, 4, 5), keepdim=True)
    variance = (gap * gap).mean((2, 3, 4, 5), keepdim=True)
    y = (gap * (variance + eps) ** -0.5).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    y = y * weight.to(wide)[:, None, None] + bias.to(wide)[:, None, None]
    if silu:
        y = y / (1 + (-y).exp())
    return y.to(x.dtype)
