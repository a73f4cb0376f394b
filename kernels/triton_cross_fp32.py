"""Cross-attention of float32 in Triton: queries, keys and values come a few columns at a time.

Products of float32 are fused multiply-adds here, whose operands all lie in registers: whole heads would spill. What is
computed, and where a map goes, is `triton_cross`' question.
"""

import triton
import triton.language as tl
from torch import Tensor

from fz.kernels.triton_self import dot
from fz.kernels.triton_tiles import LOG2E, columns

ROWS, WARPS, COLUMNS = 16, 8, 16


@triton.jit
def text_softmax(
    q, k, k_token, keys, scale, q_token, row, m_q,
    D: tl.constexpr, BLOCK_D: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr,
):  # fmt: skip
    """softmax(q kᵀ) of one head over all keys, which are L_A and then L_B: (BLOCK_Q, L_A) and (BLOCK_Q, L_B), fp32."""
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    n_a, n_b = l_a < keys, l_b < keys
    logits_a, logits_b = tl.zeros([row.shape[0], L_A], tl.float32), tl.zeros([row.shape[0], L_B], tl.float32)
    # parts that are unrolled spill hundreds of bytes
    for start in tl.range(0, D, BLOCK_D, loop_unroll_factor=1):
        o_d = start + tl.arange(0, BLOCK_D)
        m_d = (o_d < D)[None, :]
        part = tl.load(q + row[:, None] * q_token + o_d[None, :], mask=m_q[:, None] & m_d, other=0.0)
        k_a = tl.load(k + l_a[:, None] * k_token + o_d[None, :], mask=n_a[:, None] & m_d, other=0.0)
        k_b = tl.load(k + l_b[:, None] * k_token + o_d[None, :], mask=n_b[:, None] & m_d, other=0.0)
        logits_a = dot(part, tl.trans(k_a), logits_a, "ieee")
        logits_b = dot(part, tl.trans(k_b), logits_b, "ieee")
    logits_a = tl.where(n_a[None, :], logits_a * scale, float("-inf"))
    logits_b = tl.where(n_b[None, :], logits_b * scale, float("-inf"))
    m_i = tl.maximum(tl.max(logits_a, 1), tl.max(logits_b, 1))
    p_a, p_b = tl.exp2(logits_a - m_i[:, None]), tl.exp2(logits_b - m_i[:, None])
    share = 1.0 / (tl.sum(p_a, 1) + tl.sum(p_b, 1))
    return p_a * share[:, None], p_b * share[:, None]


@triton.jit
def times_values(p_a, p_b, v, v_token, keys, out, start, WIDTH: tl.constexpr, D: tl.constexpr, L_A: tl.constexpr,
                 L_B: tl.constexpr):  # fmt: skip
    """out + p v for WIDTH columns of v from start on."""
    o_d = start + tl.arange(0, WIDTH)
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    v_a = tl.load(v + l_a[:, None] * v_token + o_d[None, :], mask=(l_a < keys)[:, None] & (o_d < D)[None, :], other=0.0)
    out = dot(p_a, v_a, out, "ieee")
    v_b = tl.load(v + l_b[:, None] * v_token + o_d[None, :], mask=(l_b < keys)[:, None] & (o_d < D)[None, :], other=0.0)
    return dot(p_b, v_b, out, "ieee")


UNSPECIALIZED = ["frames", "tokens", "keys", "heads", "tiles", "map_branch", "fused_branch", "map_head", "map_frame"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def cross_attention_fp32_kernel(
    q, k, v, out, q_src, k_src, v_src, maps,
    frames, tokens, keys, heads, tiles, map_branch, fused_branch, scale,
    q_branch, q_frame, q_token, k_branch, k_token, v_branch, v_token,
    q_src_frame, q_src_token, k_src_token, v_src_token, out_branch, out_frame, out_token, map_head, map_frame,
    D: tl.constexpr, BLOCK_D: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, BLOCK_Q: tl.constexpr,
    FUSED: tl.constexpr, EDIT: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """Program tile · heads + head, `tiles` a frame of a branch; the rest as `triton_cross.cross_attention_kernel`."""
    i_head, i_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    i_b, i_f = (i_tile // (frames * tiles)).to(tl.int64), (i_tile // tiles % frames).to(tl.int64)
    row = i_tile % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = row < tokens
    fused = FUSED and i_b == fused_branch
    edits = EDIT or not fused
    head = i_head * D
    e_a, e_b = tl.zeros([BLOCK_Q, L_A], tl.float32), tl.zeros([BLOCK_Q, L_B], tl.float32)
    s_a, s_b = tl.zeros([BLOCK_Q, L_A], tl.float32), tl.zeros([BLOCK_Q, L_B], tl.float32)
    if edits:
        e_a, e_b = text_softmax(q + i_b * q_branch + i_f * q_frame + head, k + i_b * k_branch + head, k_token, keys,
                                scale, q_token, row, m_q, D, BLOCK_D, L_A, L_B)  # fmt: skip
        if MAP:
            if i_b == map_branch:
                p_map = maps + i_head.to(tl.int64) * map_head + i_f * map_frame + row[:, None] * (L_A + L_B)
                tl.store(p_map + tl.arange(0, L_A)[None, :], e_a, mask=m_q[:, None])
                tl.store(p_map + L_A + tl.arange(0, L_B)[None, :], e_b, mask=m_q[:, None])
    if fused:
        s_a, s_b = text_softmax(q_src + i_f * q_src_frame + head, k_src + head, k_src_token, keys, scale, q_src_token,
                                row, m_q, D, BLOCK_D, L_A, L_B)  # fmt: skip
    p_out = out + i_b * out_branch + i_f * out_frame + head + row[:, None] * out_token
    # parts that are unrolled spill hundreds of bytes
    for start in tl.range(0, D, BLOCK_D, loop_unroll_factor=1):
        part = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        if edits:
            part = times_values(e_a, e_b, v + i_b * v_branch + head, v_token, keys, part, start, BLOCK_D, D, L_A, L_B)
        if fused:
            part = times_values(s_a, s_b, v_src + head, v_src_token, keys, part, start, BLOCK_D, D, L_A, L_B)
        o_d = start + tl.arange(0, BLOCK_D)
        tl.store(p_out + o_d[None, :], part, mask=m_q[:, None] & (o_d < D)[None, :])


def attend(q, k, v, out, q_src, k_src, v_src, maps: Tensor, map_branch: int, fused: bool, mapped: bool) -> None:
    """One launch; the operands are `triton_cross.attend`'s."""
    branches, keys, heads, d = v.shape
    f, tokens = q.shape[1:3]
    tiles = triton.cdiv(tokens, ROWS)
    l_a, l_b = columns(keys)
    cross_attention_fp32_kernel[(branches * f * tiles * heads,)](
        q, k, v, out, q_src, k_src, v_src, maps,
        f, tokens, keys, heads, tiles, map_branch, branches - 1, LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *q_src.stride()[:2], k_src.stride(0), v_src.stride(0),
        *out.stride()[:3], *maps.stride()[:2],
        D=d, BLOCK_D=COLUMNS, L_A=l_a, L_B=l_b, BLOCK_Q=ROWS, FUSED=fused, EDIT=len(q) == branches, MAP=mapped,
        num_warps=WARPS, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
