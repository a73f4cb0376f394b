"""Cross-attention to 77 text tokens as one Triton kernel: the edit's and the source's attention, summed, in one pass over the queries.

The values are mixed beforehand (`fz.fusion`), so that fusing two maps is adding two attentions; one whose values are nothing is skipped.
Where a map is wanted, a program goes through all heads of its rows and averages their softmax as it passes. Forward only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fz.kernels.triton_self import dot
from fz.kernels.triton_tiles import LOG2E, Config, columns, with_contiguous_heads


@triton.jit
def text_softmax(
    q, k, k_token, keys, scale, q_token, row, m_q,
    D: tl.constexpr, BLOCK_D: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(q kᵀ) of one head over all keys, which are L_A and then L_B: (BLOCK_Q, L_A) and (BLOCK_Q, L_B), fp32."""
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    n_a, n_b = l_a < keys, l_b < keys
    logits_a, logits_b = tl.zeros([row.shape[0], L_A], tl.float32), tl.zeros([row.shape[0], L_B], tl.float32)
    # fp32 spills hundreds of bytes where its parts are unrolled
    UNROLL: tl.constexpr = 1 if q.dtype.element_ty == tl.float32 else (D + BLOCK_D - 1) // BLOCK_D
    for start in tl.range(0, D, BLOCK_D, loop_unroll_factor=UNROLL):
        o_d = start + tl.arange(0, BLOCK_D)
        m_d = (o_d < D)[None, :]
        part = tl.load(q + row[:, None] * q_token + o_d[None, :], mask=m_q[:, None] & m_d, other=0.0)
        k_a = tl.load(k + l_a[:, None] * k_token + o_d[None, :], mask=n_a[:, None] & m_d, other=0.0)
        k_b = tl.load(k + l_b[:, None] * k_token + o_d[None, :], mask=n_b[:, None] & m_d, other=0.0)
        logits_a = dot(part, tl.trans(k_a), logits_a, PRECISION)
        logits_b = dot(part, tl.trans(k_b), logits_b, PRECISION)
    logits_a = tl.where(n_a[None, :], logits_a * scale, float("-inf"))
    logits_b = tl.where(n_b[None, :], logits_b * scale, float("-inf"))
    top = tl.maximum(tl.max(logits_a, 1), tl.max(logits_b, 1))
    p_a, p_b = tl.exp2(logits_a - top[:, None]), tl.exp2(logits_b - top[:, None])
    share = 1.0 / (tl.sum(p_a, 1) + tl.sum(p_b, 1))
    return p_a * share[:, None], p_b * share[:, None]


@triton.jit
def times_values(p_a, p_b, v, v_token, keys, out, start, WIDTH: tl.constexpr, D: tl.constexpr, L_A: tl.constexpr,
                 L_B: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out + p v for WIDTH columns of v from start on."""
    o_d = start + tl.arange(0, WIDTH)
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    v_a = tl.load(v + l_a[:, None] * v_token + o_d[None, :], mask=(l_a < keys)[:, None] & (o_d < D)[None, :], other=0.0)
    out = dot(p_a, v_a, out, PRECISION)
    v_b = tl.load(v + l_b[:, None] * v_token + o_d[None, :], mask=(l_b < keys)[:, None] & (o_d < D)[None, :], other=0.0)
    return dot(p_b, v_b, out, PRECISION)


@triton.jit
def cross_attention_kernel(
    q, k, v, out, q_src, k_src, v_src, maps,
    frames, tokens, keys, heads, tiles, map_branch, fused_branch, scale,
    q_branch, q_frame, q_token, k_branch, k_token, v_branch, v_token, q_src_frame, q_src_token, k_src_token, v_src_token,
    out_branch, out_frame, out_token, map_frame, map_token,
    D: tl.constexpr, BLOCK_D: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, BLOCK_Q: tl.constexpr,
    FUSED: tl.constexpr, EDIT: tl.constexpr, MAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tile of a frame of a branch, head), or (tile, 0) for all heads where MAP. EDIT: the fused branch has queries of its own.

    Queries, keys and values come BLOCK_D columns at a time, both softmaxes before the values: what is alive at once fits the registers.
    """
    i_tile, i_head = tl.program_id(0), tl.program_id(1)
    i_b, i_f = (i_tile // (frames * tiles)).to(tl.int64), (i_tile // tiles % frames).to(tl.int64)
    row = i_tile % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = row < tokens
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    fused = FUSED and i_b == fused_branch
    edits = EDIT or not fused
    mean_a, mean_b = tl.zeros([BLOCK_Q, L_A], tl.float32), tl.zeros([BLOCK_Q, L_B], tl.float32)
    first, last = i_head, i_head + 1
    if MAP:
        first, last = 0, heads
    dtype = v.dtype.element_ty
    for head in range(first, last):
        e_a, e_b = tl.zeros([BLOCK_Q, L_A], dtype), tl.zeros([BLOCK_Q, L_B], dtype)
        s_a, s_b = tl.zeros([BLOCK_Q, L_A], dtype), tl.zeros([BLOCK_Q, L_B], dtype)
        # the edit's attention; in the fused branch only where some column keeps it
        if edits:
            p_a, p_b = text_softmax(q + i_b * q_branch + i_f * q_frame + head * D, k + i_b * k_branch + head * D, k_token, keys, scale,
                                    q_token, row, m_q, D, BLOCK_D, L_A, L_B, PRECISION)  # fmt: skip
            if MAP:
                mean_a += p_a
                mean_b += p_b
            e_a, e_b = p_a.to(dtype), p_b.to(dtype)
        if fused:
            p_a, p_b = text_softmax(q_src + i_f * q_src_frame + head * D, k_src + head * D, k_src_token, keys, scale,
                                    q_src_token, row, m_q, D, BLOCK_D, L_A, L_B, PRECISION)  # fmt: skip
            s_a, s_b = p_a.to(dtype), p_b.to(dtype)
        p_out = out + i_b * out_branch + i_f * out_frame + head * D + row[:, None] * out_token
        UNROLL: tl.constexpr = 1 if dtype == tl.float32 else (D + BLOCK_D - 1) // BLOCK_D
        for start in tl.range(0, D, BLOCK_D, loop_unroll_factor=UNROLL):
            part = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
            if edits:
                part = times_values(
                    e_a, e_b, v + i_b * v_branch + head * D, v_token, keys, part, start, BLOCK_D, D, L_A, L_B, PRECISION
                )
            if fused:
                part = times_values(
                    s_a, s_b, v_src + head * D, v_src_token, keys, part, start, BLOCK_D, D, L_A, L_B, PRECISION
                )
            o_d = start + tl.arange(0, BLOCK_D)
            tl.store(p_out + o_d[None, :], part.to(out.dtype.element_ty), mask=m_q[:, None] & (o_d < D)[None, :])
    if MAP:
        if i_b == map_branch:
            p_map = maps + i_f * map_frame + row[:, None] * map_token
            tl.store(p_map + l_a[None, :], mean_a / heads, mask=m_q[:, None] & (l_a < keys)[None, :])
            tl.store(p_map + l_b[None, :], mean_b / heads, mask=m_q[:, None] & (l_b < keys)[None, :])


def head_block(d: int, dtype: torch.dtype) -> int:
    """How many of a head's columns at a time: 32 where D is a multiple of it, else 16, the least that a matrix instruction takes."""
    return 32 if d % 32 == 0 and dtype != torch.float32 else 16


def configure(dtype: torch.dtype) -> Config:
    """Tiles that GPUs of capability 8.0 and later do not spill at D = 40, 80, 160.

    But for 8.6 and 8.9 with a map: 8 bytes at D = 80, 88 at 160. block_k is not used, as all keys are one tile.
    """
    return Config(16, 0, 8, 1) if dtype == torch.float32 else Config(128, 0, 8, 1)


def cross_attention(
    q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None
) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`."""
    fused, mapped = q_src is not None, map_branch is not None
    q, k, v = (with_contiguous_heads(x.to(v.dtype)) for x in (q, k, v))
    branches, keys, heads, d = v.shape
    f, tokens = q.shape[1:3]
    q_src, k_src, v_src = (
        (with_contiguous_heads(x.to(v.dtype)) for x in (q_src, k_src, v_src)) if fused else (q[0], k[0], v[0])
    )
    out = torch.empty((branches, f, tokens, heads, d), dtype=v.dtype, device=v.device)
    maps = torch.empty((f, tokens, keys), dtype=torch.float32, device=v.device) if mapped else out
    config = configure(v.dtype)
    tiles = triton.cdiv(tokens, config.block_q)
    l_a, l_b = columns(keys, tma=False)
    cross_attention_kernel[(branches * f * tiles, 1 if mapped else heads)](
        q, k, v, out, q_src, k_src, v_src, maps,
        f, tokens, keys, heads, tiles, range(len(q))[map_branch] if mapped else 0, branches - 1, LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *q_src.stride()[:2], k_src.stride(0), v_src.stride(0),
        *out.stride()[:3], *maps.stride()[:2],
        D=d, BLOCK_D=head_block(d, v.dtype), L_A=l_a, L_B=l_b, BLOCK_Q=config.block_q, FUSED=fused, EDIT=len(q) == branches, MAP=mapped,
        PRECISION="ieee" if v.dtype == torch.float32 else "tf32", num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if not mapped:
        return out, None
    return out, maps if map_weights is None else maps @ map_weights.to(maps)
