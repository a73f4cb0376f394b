"""Attention on `scaled_dot_product_attention`, or on oneDNN's products where those are faster: no map is built.

Fusing costs one attention: each query row takes one softmax, the edit's or the source's (rows are gathered by the mask,
computed once, scattered back). Keys are read where they lie: frames with the same anchor share one call, and only
different anchors of one frame are laid side by side. Differentiable. The arguments are those of
`fz.kernels.self_attention` and `fz.kernels.cross_attention`.
"""

import math
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.kernels import onednn_tiles
from fz.kernels.gemm import prefers_onednn
from fz.kernels.onednn_tiles import Laid


def attend(
    q: Tensor,
    k: Laid,
    v: Laid,
    anchors: list[int],
    out: Tensor,
    bias: Tensor | None = None,
    index: Tensor | None = None,
) -> None:
    """out = softmax(q kᵀ / √D + bias) v for token-major operands, q and out (B, Nq, Nh, D).

    k, v: (B, F, N, Nh, D), of which the anchor frames are attended to, side by side; bias (B or 1, R·N). index: the
    rows to do, (n,) int64, None for all.
    """
    if bias is None and onednn_tiles.serves(q, k.x, v.x, anchors, q.shape[1] if index is None else len(index)):
        onednn_tiles.attend(q, k, v, anchors, out, index)
        return
    if bias is not None:
        bias = bias[:, None, None]
    if index is not None:
        q = q.index_select(1, index)
    q, keys, values = (x.transpose(1, 2) for x in (q, k.beside(anchors), v.beside(anchors)))
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and prefers_onednn():
        # as tiles do: no slower there, and its logits would have too few digits
        q, keys, values = q.float(), keys.float(), values.float()
        bias = bias if bias is None or bias.dtype == torch.bool else bias.float()
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias).transpose(1, 2)
    if index is None:
        out.copy_(attended)
    else:
        out.index_copy_(1, index, attended.to(out.dtype))


def self_attention(q, k, v, frames, *, q_src=None, k_src=None, mask=None, key_mask=None) -> Tensor:
    """See `fz.kernels.self_attention`."""
    plain = len(v) if q_src is None else len(v) - 1
    out = v.new_empty(len(v), len(frames), *v.shape[2:])
    table, scale = frames.tolist(), v.shape[-1] ** -0.5
    plain_k, plain_v = Laid(k[:plain], scale), Laid(v[:plain])
    if q_src is not None:
        source_k, edit_k, fused_v = Laid(k_src[None].to(v), scale), Laid(k[-1:].to(v), scale), Laid(v[-1:])
    # runs of frames that read the same anchors, such as all of them under ['mid'], are one call
    for anchors, run in groupby(range(len(table)), key=table.__getitem__):
        rows = list(run)
        span = slice(rows[0], rows[-1] + 1)
        distinct, weight = multiplicities(anchors, v)
        keep = None if key_mask is None else key_mask[:, distinct].flatten(1)
        bias = key_bias(weight, keep, v.shape[2])
        if plain:
            attend(
                q[:plain, span].flatten(1, 2),
                plain_k,
                plain_v,
                distinct,
                out[:plain, span].flatten(1, 2),
                _of(bias, slice(plain)),
            )
        if q_src is None:
            continue
        own_bias, fused = _of(bias, slice(-1, None)), out[-1:, span].flatten(1, 2)
        edited = (
            mask[span].flatten() if mask is not None else torch.zeros(fused.shape[1], dtype=torch.bool, device=v.device)
        )
        # each row once: the edited ones by the edit's queries and keys, the others by the source's
        for whole, keys, chosen in ((q, edit_k, edited), (q_src[None], source_k, ~edited)):
            if chosen.any():
                index = None if chosen.all() else chosen.nonzero()[:, 0]
                attend(whole[-1:, span].flatten(1, 2).to(v), keys, fused_v, distinct, fused, own_bias, index)
    return out


def multiplicities(anchors: list[int], v: Tensor) -> tuple[list[int], Tensor | None]:
    """The anchors once, and log of how often each counts; None where all count the same: the softmax divides it out."""
    distinct = list(dict.fromkeys(anchors))
    counts = [anchors.count(a) for a in distinct]
    if len(set(counts)) == 1:
        return distinct, None
    return distinct, torch.tensor([math.log(c) for c in counts], dtype=v.dtype, device=v.device)


def key_bias(weight: Tensor | None, keep: Tensor | None, tokens: int) -> Tensor | None:
    """What is added to the logits of each key, (1 or B, Nk): log multiplicity, -inf where `keep` (B, Nk) is False."""
    if weight is None:
        return keep
    bias = weight.repeat_interleave(tokens)[None]
    return bias if keep is None else bias.expand(keep.shape).masked_fill(~keep, float("-inf"))


def _of(bias: Tensor | None, branches: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[branches]


def cross_attention(
    q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None
) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`."""
    branches, frames = q.shape[:2]
    out = torch.empty(len(v), frames * q.shape[2], *v.shape[2:], dtype=v.dtype, device=v.device)
    scale = v.shape[-1] ** -0.5
    attend(q.flatten(1, 2), Laid(k[:branches, None], scale), Laid(v[:branches, None]), [0], out[:branches])
    if q_src is not None:
        source = torch.empty_like(out[-1:]) if branches == len(v) else out[-1:]
        attend(
            q_src.flatten(0, 1)[None].to(v), Laid(k_src[None, None].to(v), scale), Laid(v_src[None, None]), [0], source
        )
        if branches == len(v):
            out[-1:] += source
    out = out.unflatten(1, (frames, -1))
    maps = None if map_branch is None else averaged_map(q[map_branch], k[range(branches)[map_branch]], map_weights)
    return out, maps


def averaged_map(q: Tensor, k: Tensor, weights: Tensor | None) -> Tensor:
    """Softmax averaged over heads, times weights (L, W) if given: (F, N, Nh, D), (L, Nh, D) -> (F, N, L or W)."""
    maps, k = [], k.to(torch.promote_types(k.dtype, torch.float32))
    for frame in q:
        logits = torch.einsum("qhd,khd->hqk", frame.to(k), k) * q.shape[-1] ** -0.5
        m = logits.softmax(-1).mean(0)
        maps.append(m if weights is None else m @ weights.to(m))
    return torch.stack(maps)


def group_norm(x, frames, groups, weight, bias, eps, *, time=None, silu=False) -> Tensor:
    """See `fz.kernels.group_norm`."""
    if time is not None:
        x += time[:, :, None, None]
    if frames == 1:
        y = F.group_norm(x, groups, weight, bias, eps)
    else:
        # (B, C, F, H, W) is a view of channels_last frames, and itself channels_last_3d: no copy
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        y = F.group_norm(clip, groups, weight, bias, eps).transpose(1, 2).flatten(0, 1)
    return F.silu(y, inplace=not torch.is_grad_enabled()) if silu else y
