"""Spatial-temporal self-attention with mask blending as one Triton kernel.

It is flash attention whose operands are chosen by the query tile. A tile holds rows of one kind only, edited or kept,
and reads (q, k) or (q_src, k_src) by pointer; values are the edit's own either way (FateZero eq. 7, 8). Keys of the
anchor frames are read where they lie, through a table. Forward only; the reference is `reference.py`. Layers that fuse
nothing take `triton_plain.py` where the GPU and the shapes allow it.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from fz.kernels import triton_plain
from fz.kernels.rows import anchors_of, rows_of
from fz.kernels.triton_tiles import (
    LOG2E,
    Tiles,
    by_tma,
    capability_of,
    columns,
    provide_memory,
    self_tiles,
    with_contiguous_heads,
)

# triton's interpreter multiplies bfloat16's bit patterns as integers; a GPU, too, sums fp32 products of bf16 values
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a b, accumulated in fp32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def rescaled(p, v, out, alpha, PRECISION: tl.constexpr):
    """out · alpha + p v."""
    if PRECISION == "tf32x3":
        # tensor cores cut their sums off, which over thousands of keys would be 17 to 68 times the error of maps: a
        # tile's sum begins anew, and a multiply-add, which Triton does not move into the product, adds it
        out = tl.fma(out, tl.broadcast_to(alpha[:, None], out.shape), dot(p, v, tl.zeros_like(out), PRECISION))
    else:
        out = dot(p, v, out * alpha[:, None], PRECISION)
    return out


@triton.jit
def load_columns(base, o_k, m_k, step, o_d, m_d, EVEN: tl.constexpr, FULL: tl.constexpr):
    """(BLOCK_K, columns) of keys or values, masked only where something may lie outside."""
    p = base + o_k[:, None] * step + o_d[None, :]
    if EVEN and FULL:
        x = tl.load(p)
    elif EVEN:
        x = tl.load(p, mask=m_d[None, :], other=0.0)
    elif FULL:
        x = tl.load(p, mask=m_k[:, None], other=0.0)
    else:
        x = tl.load(p, mask=m_k[:, None] & m_d[None, :], other=0.0)
    return x


@triton.jit
def attend_tile(q_a, q_b, k, v, anchors, weights, keep, count, seen_frames, tokens, k_frame, k_token, v_frame, v_token,
                scale, D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_Q: tl.constexpr,
                BLOCK_K: tl.constexpr, EVEN: tl.constexpr, TMA: tl.constexpr, HAS_KEEP: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """One softmax of a tile of rows over the keys of its anchors, D in two parts.

    Returns out_a (BLOCK_Q, D_A), out_b (BLOCK_Q, D_B), fp32.
    """
    SPLIT: tl.constexpr = D > D_A
    o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
    m_a, m_b = o_a < D, o_b < D
    m_i = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_Q], tl.float32)
    out_a, out_b = tl.zeros([BLOCK_Q, D_A], tl.float32), tl.zeros([BLOCK_Q, D_B], tl.float32)
    if TMA:
        # columns from D on and tokens past a frame's end come as zeros
        d_k = tl.make_tensor_descriptor(k, [seen_frames, tokens, D], [k_frame, k_token, 1], [1, BLOCK_K, D_A])
        d_v = tl.make_tensor_descriptor(v, [seen_frames, tokens, D], [v_frame, v_token, 1], [1, BLOCK_K, D_A])
        if SPLIT:
            d_k_b = tl.make_tensor_descriptor(k, [seen_frames, tokens, D], [k_frame, k_token, 1], [1, BLOCK_K, D_B])
            d_v_b = tl.make_tensor_descriptor(v, [seen_frames, tokens, D], [v_frame, v_token, 1], [1, BLOCK_K, D_B])
    for r in range(0, count):
        anchor = tl.load(anchors + r)
        weight = tl.load(weights + r)
        # within a frame 32-bit offsets reach everything, and cost half of the registers
        frame = anchor.to(tl.int64)
        for start in range(0, tokens, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = o_k < tokens
            if TMA:
                k_a = d_k.load([anchor, start, 0]).reshape(BLOCK_K, D_A)
            else:
                k_a = load_columns(k + frame * k_frame, o_k, m_k, k_token, o_a, m_a, EVEN, D >= D_A)
            logits = dot(q_a, tl.trans(k_a), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32), PRECISION)
            if SPLIT:
                if TMA:
                    k_b = d_k_b.load([anchor, start, D_A]).reshape(BLOCK_K, D_B)
                else:
                    k_b = load_columns(k + frame * k_frame, o_k, m_k, k_token, o_b, m_b, EVEN, D == D_A + D_B)
                logits = dot(q_b, tl.trans(k_b), logits, PRECISION)
            if HAS_KEEP:
                seen = m_k & (tl.load(keep + frame * tokens + o_k, mask=m_k, other=0) != 0)
                logits = tl.where(seen[None, :], logits, float("-inf"))
            elif not EVEN:
                logits = tl.where(m_k[None, :], logits, float("-inf"))
            # an anchor that counts n times adds log2 n: nothing is read twice
            above = tl.maximum(m_i, tl.max(logits, 1) * scale + weight)
            shift = above
            if HAS_KEEP:
                # rows without a key so far stay -inf: subtract 0, not -inf
                shift = tl.where(above == float("-inf"), 0.0, above)
            # the scale is one multiply-add with the subtraction
            p = tl.exp2(logits * scale - (shift - weight)[:, None])
            alpha = tl.exp2(m_i - shift)
            l_i = l_i * alpha + tl.sum(p, 1)
            if TMA:
                v_a = d_v.load([anchor, start, 0]).reshape(BLOCK_K, D_A)
            else:
                v_a = load_columns(v + frame * v_frame, o_k, m_k, v_token, o_a, m_a, EVEN, D >= D_A)
            p = p.to(v_a.dtype)
            out_a = rescaled(p, v_a, out_a, alpha, PRECISION)
            if SPLIT:
                if TMA:
                    v_b = d_v_b.load([anchor, start, D_A]).reshape(BLOCK_K, D_B)
                else:
                    v_b = load_columns(v + frame * v_frame, o_k, m_k, v_token, o_b, m_b, EVEN, D == D_A + D_B)
                out_b = rescaled(p, v_b, out_b, alpha, PRECISION)
            m_i = above
    share = 1.0 / tl.where(l_i == 0.0, 1.0, l_i)
    return out_a * share[:, None], out_b * share[:, None]


# integers that change from layer to layer: the kernel would be compiled again for each kind of them (1, 16 n, other)
UNSPECIALIZED = ["frames", "seen_frames", "slots", "heads", "plain_tiles", "tiles", "fused_tiles"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def self_attention_kernel(
    q, k, v, out, q_src, k_src, order, edited, anchors, weights, counts, keep,
    frames, seen_frames, tokens, slots, heads, plain_tiles, tiles, fused_tiles, scale,
    q_branch, q_frame, q_token, k_branch, k_frame, k_token, v_branch, v_frame, v_token,
    q_src_frame, q_src_token, k_src_frame, k_src_token, out_branch, out_frame, out_token,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FUSED: tl.constexpr, EVEN: tl.constexpr, TMA: tl.constexpr, HAS_KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program tile · heads + head: the heads of a frame run together, so that its tokens come from memory once.

    Tiles: first those of the plain branches, `tiles` a frame, then the fused branch's, `fused_tiles` a frame.
    order: (F, N) rows of the fused branch, edited ones first; edited: (F,) how many. anchors, weights: (F, slots), the
    first counts[i] of a row are used. keep: (B, seen frames, N) uint8. Heads are D apart and D is contiguous in every
    operand. EVEN: BLOCK_K divides N.
    """
    SPLIT: tl.constexpr = D > D_A
    i_head, i_tile = tl.program_id(0) % heads, tl.program_id(0) // heads
    fused = FUSED and i_tile >= plain_tiles
    if fused:
        branch = plain_tiles // (frames * tiles)
        i_frame = (i_tile - plain_tiles) // fused_tiles
        i_row = (i_tile - plain_tiles) % fused_tiles
        changed = tl.load(edited + i_frame)
    else:
        branch = i_tile // (frames * tiles)
        i_frame = i_tile // tiles % frames
        i_row = i_tile % tiles
        changed = tokens
    edit_tiles = tl.cdiv(changed, BLOCK_Q)
    kept = i_row >= edit_tiles
    if kept:
        first, last = changed + (i_row - edit_tiles) * BLOCK_Q, tokens
    else:
        first, last = i_row * BLOCK_Q, changed
    if first < last:
        place = first + tl.arange(0, BLOCK_Q)
        m_q = place < last
        row = place
        if fused:
            row = tl.load(order + i_frame * tokens + place, mask=m_q, other=0)
        i_b, i_f, head = branch.to(tl.int64), i_frame.to(tl.int64), i_head * D
        if kept:
            q_base, q_step, k_base, k_hop, k_step = (
                q_src + i_f * q_src_frame,
                q_src_token,
                k_src,
                k_src_frame,
                k_src_token,
            )
        else:
            q_base, q_step = q + i_b * q_branch + i_f * q_frame, q_token
            k_base, k_hop, k_step = k + i_b * k_branch, k_frame, k_token
        o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
        m_a, m_b = o_a < D, o_b < D
        p_q = q_base + head + row[:, None] * q_step
        q_a = tl.load(p_q + o_a[None, :], mask=m_q[:, None] & m_a[None, :], other=0.0)
        q_b = tl.load(p_q + o_b[None, :], mask=m_q[:, None] & m_b[None, :], other=0.0)
        out_a, out_b = attend_tile(
            q_a, q_b, k_base + head, v + i_b * v_branch + head, anchors + i_frame * slots, weights + i_frame * slots,
            keep + i_b * seen_frames * tokens, tl.load(counts + i_frame), seen_frames, tokens,
            k_hop, k_step, v_frame, v_token, scale, D, D_A, D_B, BLOCK_Q, BLOCK_K, EVEN, TMA, HAS_KEEP, PRECISION,
        )  # fmt: skip
        p_out = out + i_b * out_branch + i_f * out_frame + head + row[:, None] * out_token
        tl.store(p_out + o_a[None, :], out_a.to(out.dtype.element_ty), mask=m_q[:, None] & m_a[None, :])
        if SPLIT:
            tl.store(p_out + o_b[None, :], out_b.to(out.dtype.element_ty), mask=m_q[:, None] & m_b[None, :])


def grid_of(branches: int, frames: int, tokens: int, block_q: int, fused: bool, mixed: bool) -> tuple[int, int, int]:
    """Tiles of the plain branches, of a frame of theirs, of a frame of the fused branch (a mixed mask: one more)."""
    tiles = triton.cdiv(tokens, block_q)
    return (branches - fused) * frames * tiles, tiles, (tiles + mixed) if fused else 0


def self_attention(
    q, k, v, frames, *, q_src=None, k_src=None, mask=None, key_mask=None, tiles: Tiles | None = None
) -> Tensor:
    """See `fz.kernels.self_attention`. tiles: others than the table's."""
    fused = q_src is not None
    q, k, v = (with_contiguous_heads(x.to(v.dtype)) for x in (q, k, v))
    branches, seen_frames, tokens, heads, d = v.shape
    f = len(frames)
    tiles = tiles or self_tiles(d, v.dtype, capability_of(v.device), fused or key_mask is not None)
    tables = anchors_of(frames, v.device)
    out = v.new_empty(branches, f, tokens, heads, d)
    if not fused and key_mask is None and triton_plain.serves(q, k, v, tiles):
        triton_plain.attend(q, k, v, tables, out, tiles)
        return out
    q_src, k_src = (with_contiguous_heads(x.to(v.dtype)) for x in (q_src, k_src)) if fused else (q[0], k[0])
    # neither is read where nothing is fused
    order, edited = rows_of(mask, f, tokens, v.device) if fused else (tables[0], tables[0])
    keep = tables[0] if key_mask is None else key_mask.contiguous().view(torch.uint8)
    tma = tiles.tma and by_tma(k, v, k_src)
    if tma and v.is_cuda:
        provide_memory(v.device)
    plain_tiles, frame_tiles, fused_tiles = grid_of(branches, f, tokens, tiles.block_q, fused, mask is not None)
    # a head of two parts is two copies, which cost more than products with zeros
    d_a, d_b = columns(d, whole=tma and d <= 64)
    self_attention_kernel[((plain_tiles + f * fused_tiles) * heads,)](
        q, k, v, out, q_src, k_src, order, edited, *tables, keep,
        f, seen_frames, tokens, tables[0].shape[1], heads, plain_tiles, frame_tiles, max(fused_tiles, 1),
        LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *q_src.stride()[:2], *k_src.stride()[:2], *out.stride()[:3],
        D=d, D_A=d_a, D_B=d_b, BLOCK_Q=tiles.block_q, BLOCK_K=tiles.block_k, FUSED=fused,
        EVEN=tokens % tiles.block_k == 0, TMA=tma, HAS_KEEP=key_mask is not None,
        PRECISION="ieee" if torch.version.hip else tiles.precision,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out
