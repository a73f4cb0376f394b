"""Attention on `scaled_dot_product_attention`, or on oneDNN's products where those are faster: no map is built, fusing costs one attention.

Each query row takes one softmax, the edit's or the source's (rows are gathered by the mask, computed once, scattered back). Keys are
read where they lie: frames with the same anchor share one call, and only different anchors of one frame are laid side by side.
Differentiable. The arguments are those of `fz.kernels.self_attention` and `fz.kernels.cross_attention`.
"""

import math
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.kernels import onednn_tiles


def attend(q: Tensor, k: list[Tensor], v: list[Tensor], bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + bias) v for token-major operands: q (B, Nq, Nh, D) -> (B, Nq, Nh, D).

    k, v: anchors, (B, N, Nh, D) each, whose keys are side by side, Nk in all; bias (B or 1, Nk).
    """
    if bias is None and onednn_tiles.serves(q, k, v):
        return onednn_tiles.attend(q, k, v)
    k, v = (x[0] if len(x) == 1 else torch.cat(x, dim=1) for x in (k, v))
    if bias is not None:
        bias = bias[:, None, None]
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias).transpose(1, 2)


def self_attention(q, k, v, frames, *, q_src=None, k_src=None, mask=None, key_mask=None) -> Tensor:
    """See `fz.kernels.self_attention`."""
    plain = len(v) if q_src is None else len(v) - 1
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    table = frames.tolist()
    # runs of frames that read the same anchors, such as all of them under ['mid'], are one call
    for anchors, run in groupby(range(len(table)), key=table.__getitem__):
        rows = list(run)
        span = slice(rows[0], rows[-1] + 1)
        distinct, weight = multiplicities(anchors, v)
        keep = None if key_mask is None else key_mask[:, distinct].flatten(1)
        bias = key_bias(weight, keep, v.shape[2])
        if plain:
            keys, values = side_by_side(k[:plain], distinct), side_by_side(v[:plain], distinct)
            attended = attend(q[:plain, span].flatten(1, 2), keys, values, _of(bias, slice(plain)))
            out[:plain, span] = attended.unflatten(1, (len(rows), -1))
        if q_src is not None:
            edited = None if mask is None else mask[span].flatten()
            source = (q_src[span].flatten(0, 1), side_by_side(k_src[None], distinct))
            edit = None if edited is None or not edited.any() else (q[-1, span].flatten(0, 1), side_by_side(k[-1:], distinct))
            values = side_by_side(v[-1:], distinct)
            out[-1, span] = blend(edit, source, values, edited, _of(bias, slice(-1, None))).unflatten(0, (len(rows), -1))
    return out


def blend(edit, source, v: list[Tensor], edited: Tensor | None, bias: Tensor | None) -> Tensor:
    """Rows where `edited` (Nq,) is True from the operands `edit` (q, k), the others from `source`: (Nq, Nh, D). Each row once."""

    def rows(q: Tensor, k: list[Tensor]) -> Tensor:
        return attend(q[None].to(v[0]), [x.to(v[0]) for x in k], v, bias)[0]

    if edit is None:
        return rows(*source)
    if edited.all():
        return rows(*edit)
    out = torch.empty_like(edit[0], dtype=v[0].dtype, memory_format=torch.contiguous_format)
    for (q, k), chosen in ((edit, edited), (source, ~edited)):
        index = chosen.nonzero()[:, 0]
        out.index_copy_(0, index, rows(q.index_select(0, index), k))
    return out


def multiplicities(anchors: list[int], v: Tensor) -> tuple[list[int], Tensor | None]:
    """The anchors without repetition, and log of how often each counts; None where all count the same, as the softmax divides it out."""
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


def side_by_side(x: Tensor, anchors: list[int]) -> list[Tensor]:
    """Tokens of the anchor frames, (B, F, N, Nh, D) -> (B, N, Nh, D) each; one view of neighbours in order, (B, R·N, Nh, D)."""
    first, count = anchors[0], len(anchors)
    if anchors == list(range(first, first + count)):
        return [x[:, first : first + count].flatten(1, 2)]
    return [x[:, a] for a in anchors]


def _of(bias: Tensor | None, branches: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[branches]


def cross_attention(q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`."""
    branches, frames = q.shape[:2]
    out = attend(q.flatten(1, 2), [k[:branches]], [v[:branches]]).unflatten(1, (frames, -1))
    if q_src is not None:
        source = attend(q_src.flatten(0, 1)[None].to(v), [k_src[None].to(v)], [v_src[None]]).unflatten(1, (frames, -1))
        if branches == len(v):
            source = source + out[-1:]
        out = torch.cat([out[: len(v) - 1], source])
    maps = None if map_branch is None else averaged_map(q[map_branch], k[range(branches)[map_branch]], map_weights)
    return out, maps


def averaged_map(q: Tensor, k: Tensor, weights: Tensor | None) -> Tensor:
    """Softmax averaged over heads, times weights (L, W) if given: (F, N, Nh, D), (L, Nh, D) -> (F, N, L or W). A frame at a time."""
    maps = []
    for frame in q:
        logits = torch.einsum("qhd,khd->hqk", frame, k) * q.shape[-1] ** -0.5
        m = logits.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).mean(0)
        maps.append(m if weights is None else m @ weights.to(m))
    return torch.stack(maps)
