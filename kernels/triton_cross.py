"""Cross-attention to 77 text tokens as one Triton kernel: the edit's and the source's attention, summed, in one pass over the queries.

The values are mixed beforehand (`fz.fusion`), so that fusing two maps is adding two attentions; one whose values are nothing is skipped.
Where a map is wanted, a program goes through all heads of its rows and averages their softmax as it passes. Forward only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fz.kernels.triton_self import LOG2E, Config, capability_of, dot, split, with_contiguous_heads


@triton.jit
def attend_text(
    q_a, q_b, k, v, k_token, v_token, keys, scale,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr,
    BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head's softmax over all keys, in two parts L_A and L_B. Returns out_a, out_b, p_a, p_b, all fp32, p divided by its sum."""
    o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    m_a, m_b = o_a < D, o_b < D
    n_a, n_b = l_a < keys, l_b < keys
    k_aa = tl.load(k + l_a[:, None] * k_token + o_a[None, :], mask=n_a[:, None] & m_a[None, :], other=0.0)
    k_ba = tl.load(k + l_b[:, None] * k_token + o_a[None, :], mask=n_b[:, None] & m_a[None, :], other=0.0)
    logits_a = dot(q_a, tl.trans(k_aa), tl.zeros([BLOCK_Q, L_A], tl.float32), PRECISION)
    logits_b = dot(q_a, tl.trans(k_ba), tl.zeros([BLOCK_Q, L_B], tl.float32), PRECISION)
    if D > D_A:
        k_ab = tl.load(k + l_a[:, None] * k_token + o_b[None, :], mask=n_a[:, None] & m_b[None, :], other=0.0)
        k_bb = tl.load(k + l_b[:, None] * k_token + o_b[None, :], mask=n_b[:, None] & m_b[None, :], other=0.0)
        logits_a = dot(q_b, tl.trans(k_ab), logits_a, PRECISION)
        logits_b = dot(q_b, tl.trans(k_bb), logits_b, PRECISION)
    logits_a = tl.where(n_a[None, :], logits_a * scale, float("-inf"))
    logits_b = tl.where(n_b[None, :], logits_b * scale, float("-inf"))
    top = tl.maximum(tl.max(logits_a, 1), tl.max(logits_b, 1))
    p_a, p_b = tl.exp2(logits_a - top[:, None]), tl.exp2(logits_b - top[:, None])
    share = 1.0 / (tl.sum(p_a, 1) + tl.sum(p_b, 1))
    p_a, p_b = p_a * share[:, None], p_b * share[:, None]
    v_aa = tl.load(v + l_a[:, None] * v_token + o_a[None, :], mask=n_a[:, None] & m_a[None, :], other=0.0)
    v_ba = tl.load(v + l_b[:, None] * v_token + o_a[None, :], mask=n_b[:, None] & m_a[None, :], other=0.0)
    out_a = dot(p_a.to(v_aa.dtype), v_aa, tl.zeros([BLOCK_Q, D_A], tl.float32), PRECISION)
    out_a = dot(p_b.to(v_ba.dtype), v_ba, out_a, PRECISION)
    out_b = tl.zeros([BLOCK_Q, D_B], tl.float32)
    if D > D_A:
        v_ab = tl.load(v + l_a[:, None] * v_token + o_b[None, :], mask=n_a[:, None] & m_b[None, :], other=0.0)
        v_bb = tl.load(v + l_b[:, None] * v_token + o_b[None, :], mask=n_b[:, None] & m_b[None, :], other=0.0)
        out_b = dot(p_b.to(v_bb.dtype), v_bb, dot(p_a.to(v_ab.dtype), v_ab, out_b, PRECISION), PRECISION)
    return out_a, out_b, p_a, p_b


@triton.jit
def cross_attention_kernel(
    q, k, v, out, q_src, k_src, v_src, maps,
    frames, tokens, keys, heads, tiles, map_branch, fused_branch, scale,
    q_branch, q_frame, q_token, k_branch, k_token, v_branch, v_token, q_src_frame, q_src_token, k_src_token, v_src_token,
    out_branch, out_frame, out_token, map_frame, map_token,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, BLOCK_Q: tl.constexpr,
    FUSED: tl.constexpr, EDIT: tl.constexpr, MAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tile of a frame of a branch, head), or (tile, 0) for all heads where MAP. EDIT: the fused branch has queries of its own."""
    i_tile, i_head = tl.program_id(0), tl.program_id(1)
    i_b, i_f = (i_tile // (frames * tiles)).to(tl.int64), (i_tile // tiles % frames).to(tl.int64)
    row = i_tile % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = row < tokens
    o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
    m_a, m_b = o_a < D, o_b < D
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    fused = FUSED and i_b == fused_branch
    mean_a, mean_b = tl.zeros([BLOCK_Q, L_A], tl.float32), tl.zeros([BLOCK_Q, L_B], tl.float32)
    first, last = i_head, i_head + 1
    if MAP:
        first, last = 0, heads
    for head in range(first, last):
        out_a, out_b = tl.zeros([BLOCK_Q, D_A], tl.float32), tl.zeros([BLOCK_Q, D_B], tl.float32)
        # the edit's attention; in the fused branch only where some column keeps it
        if EDIT or not fused:
            p_q = q + i_b * q_branch + i_f * q_frame + head * D + row[:, None] * q_token
            q_a = tl.load(p_q + o_a[None, :], mask=m_q[:, None] & m_a[None, :], other=0.0)
            q_b = tl.load(p_q + o_b[None, :], mask=m_q[:, None] & m_b[None, :], other=0.0)
            out_a, out_b, p_a, p_b = attend_text(q_a, q_b, k + i_b * k_branch + head * D, v + i_b * v_branch + head * D, k_token, v_token,
                                                 keys, scale, D, D_A, D_B, L_A, L_B, BLOCK_Q, PRECISION)  # fmt: skip
            if MAP:
                mean_a += p_a
                mean_b += p_b
        if fused:
            p_q = q_src + i_f * q_src_frame + head * D + row[:, None] * q_src_token
            q_a = tl.load(p_q + o_a[None, :], mask=m_q[:, None] & m_a[None, :], other=0.0)
            q_b = tl.load(p_q + o_b[None, :], mask=m_q[:, None] & m_b[None, :], other=0.0)
            more_a, more_b, p_a, p_b = attend_text(q_a, q_b, k_src + head * D, v_src + head * D, k_src_token, v_src_token, keys, scale,
                                                   D, D_A, D_B, L_A, L_B, BLOCK_Q, PRECISION)  # fmt: skip
            out_a += more_a
            out_b += more_b
        p_out = out + i_b * out_branch + i_f * out_frame + head * D + row[:, None] * out_token
        tl.store(p_out + o_a[None, :], out_a.to(out.dtype.element_ty), mask=m_q[:, None] & m_a[None, :])
        if D > D_A:
            tl.store(p_out + o_b[None, :], out_b.to(out.dtype.element_ty), mask=m_q[:, None] & m_b[None, :])
    if MAP:
        if i_b == map_branch:
            p_map = maps + i_f * map_frame + row[:, None] * map_token
            tl.store(p_map + l_a[None, :], mean_a / heads, mask=m_q[:, None] & (l_a < keys)[None, :])
            tl.store(p_map + l_b[None, :], mean_b / heads, mask=m_q[:, None] & (l_b < keys)[None, :])


def configure(d: int, dtype: torch.dtype, capability: int, mapped: bool) -> Config:
    """Tiles of the cross-attention kernel; block_k is not used, as all keys are one tile."""
    if dtype == torch.float32 or mapped:
        return Config(32 if d > 64 else 64, 0, 4, 1)
    return Config(64, 0, 4, 1)


def cross_attention(q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`."""
    fused, mapped = q_src is not None, map_branch is not None
    q, k, v = (with_contiguous_heads(x.to(v.dtype)) for x in (q, k, v))
    branches, keys, heads, d = v.shape
    f, tokens = q.shape[1:3]
    q_src, k_src, v_src = (with_contiguous_heads(x.to(v.dtype)) for x in (q_src, k_src, v_src)) if fused else (q[0], k[0], v[0])
    out = torch.empty((branches, f, tokens, heads, d), dtype=v.dtype, device=v.device)
    maps = torch.empty((f, tokens, keys), dtype=torch.float32, device=v.device) if mapped else out
    config = configure(d, v.dtype, capability_of(v.device), mapped)
    tiles = triton.cdiv(tokens, config.block_q)
    (d_a, d_b), (l_a, l_b) = split(d), split(keys)
    cross_attention_kernel[(branches * f * tiles, 1 if mapped else heads)](
        q, k, v, out, q_src, k_src, v_src, maps,
        f, tokens, keys, heads, tiles, range(len(q))[map_branch] if mapped else 0, branches - 1, LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *q_src.stride()[:2], k_src.stride(0), v_src.stride(0),
        *out.stride()[:3], *maps.stride()[:2],
        D=d, D_A=d_a, D_B=d_b, L_A=l_a, L_B=l_b, BLOCK_Q=config.block_q, FUSED=fused, EDIT=len(q) == branches, MAP=mapped,
        PRECISION="ieee" if v.dtype == torch.float32 else "tf32", num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if not mapped:
        return out, None
    return out, maps if map_weights is None else maps @ map_weights.to(maps)
