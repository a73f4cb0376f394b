"""Spatial-temporal self-attention of layers that fuse nothing, on Hopper: one warp group loads by TMA, two compute.

Triton's own warp specialization, which wants one flat loop and queries that come by TMA: whole tiles of rows and keys,
the rows of all frames evenly spaced, no key hidden. `triton_self` serves everything else.
"""

import triton
import triton.language as tl
from torch import Tensor

from fz.kernels.triton_tiles import LOG2E, Tiles, by_tma, provide_memory


@triton.jit(do_not_specialize=["rows", "tokens", "clip", "slots", "tiles", "heads"])
def plain_attention_kernel(
    q, k, v, out, anchors, weights, counts, rows, tokens, clip, slots, tiles, heads,
    q_token, k_token, v_token, out_token, scale, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Program tile · heads + head, tiles of all branches and frames in a row.

    q, k, v, out: (rows = B·F·N, heads · D); clip: F·N. anchors, weights, counts as `rows.merge_anchors` makes them, (F,
    slots) and (F,); tiles: of the keys of a frame.
    """
    i_head, i_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    d_q = tl.make_tensor_descriptor(q + i_head * D, [rows, D], [q_token, 1], [BLOCK_Q, D_PAD])
    d_k = tl.make_tensor_descriptor(k + i_head * D, [rows, D], [k_token, 1], [BLOCK_K, D_PAD])
    d_v = tl.make_tensor_descriptor(v + i_head * D, [rows, D], [v_token, 1], [BLOCK_K, D_PAD])
    first = i_tile * BLOCK_Q
    start = first // clip * clip
    i_frame = first % clip // tokens
    count = tl.load(counts + i_frame)
    b_q = d_q.load([first, 0])
    if INTERPRETED and q.dtype.element_ty == tl.bfloat16:
        b_q = b_q.to(tl.float32)
    m_i = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_Q], tl.float32)
    part = tl.zeros([BLOCK_Q, D_PAD], tl.float32)
    for i in tl.range(0, count * tiles, num_stages=STAGES, warp_specialize=True):
        slot = i_frame * slots + i // tiles
        at = start + tl.load(anchors + slot) * tokens + i % tiles * BLOCK_K
        # an anchor that counts n times adds log2 n: nothing is read twice
        weight = tl.load(weights + slot)
        b_k = d_k.load([at, 0])
        if INTERPRETED and q.dtype.element_ty == tl.bfloat16:
            b_k = b_k.to(tl.float32)
        logits = tl.dot(b_q, b_k.T)
        above = tl.maximum(m_i, tl.max(logits, 1) * scale + weight)
        p = tl.exp2(logits * scale - (above - weight)[:, None])
        alpha = tl.exp2(m_i - above)
        l_i = l_i * alpha + tl.sum(p, 1)
        part = part * alpha[:, None]
        b_v = d_v.load([at, 0])
        p = p.to(b_v.dtype)
        if INTERPRETED and q.dtype.element_ty == tl.bfloat16:
            p, b_v = p.to(tl.float32), b_v.to(tl.float32)
        part = tl.dot(p, b_v, part)
        m_i = above
    part = part / l_i[:, None]
    o_d = tl.arange(0, D_PAD)
    p_out = out + i_head * D + (first + tl.arange(0, BLOCK_Q)).to(tl.int64)[:, None] * out_token + o_d[None, :]
    tl.store(p_out, part.to(out.dtype.element_ty), mask=(o_d < D)[None, :])


def evenly_spaced(x: Tensor) -> bool:
    """Whether the rows of all branches and frames of (B, F, N, Nh, D) are one distance apart."""
    b, f, n = x.shape[:3]
    return (f == 1 or x.stride(1) == n * x.stride(2)) and (b == 1 or x.stride(0) == f * n * x.stride(2))


def serves(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> bool:
    """Whether `attend` takes these operands, (B, F, N, Nh, D) with heads D apart."""
    tokens = v.shape[2]
    return (
        tiles.special
        and q.shape == k.shape == v.shape
        and tokens % tiles.block_q == 0
        and tokens % tiles.block_k == 0
        and all(map(evenly_spaced, (q, k, v)))
        and by_tma(q, k, v)
    )


def attend(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor, Tensor], out: Tensor, tiles: Tiles) -> None:
    """out = softmax(q kᵀ/√D) v over each frame's anchors; tables: anchors, weights, counts (`rows.merge_anchors`)."""
    branches, frames, tokens, heads, d = v.shape
    rows = branches * frames * tokens
    if v.is_cuda:
        provide_memory(v.device)
    plain_attention_kernel[(rows // tiles.block_q * heads,)](
        q, k, v, out, *tables, rows, tokens, frames * tokens, tables[0].shape[1], tokens // tiles.block_k, heads,
        q.stride(2), k.stride(2), v.stride(2), out.stride(2), LOG2E * d**-0.5,
        D=d, D_PAD=max(16, triton.next_power_of_2(d)), BLOCK_Q=tiles.block_q, BLOCK_K=tiles.block_k,
        STAGES=tiles.stages, INTERPRETED=v.device.type == "cpu", num_warps=tiles.warps, enable_fp_fusion=True,
    )  # fmt: skip
