"""Spatial-temporal self-attention with mask blending as one Triton kernel: flash attention whose operands are chosen by the query tile.

A tile holds rows of one kind only, edited or kept, and reads (q, k) or (q_src, k_src) by pointer; values are the edit's own either way
(FateZero eq. 7, 8). Keys of the anchor frames are read where they lie, through a table. Forward only; the reference is `reference.py`.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
# triton's interpreter multiplies bfloat16's bit patterns as integers; fp32 products of bf16 values are what a GPU sums, too
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a b, accumulated in fp32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def attend_tile(q_a, q_b, k, v, anchors, weights, keep, count, tokens, k_frame, k_token, v_frame, v_token, scale,
                D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                HAS_KEEP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One softmax of a tile of rows over the keys of its anchors, D in two parts. Returns out_a, out_b, (BLOCK_Q, D_A and D_B), fp32."""
    SPLIT: tl.constexpr = D > D_A
    o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
    m_a, m_b = o_a < D, o_b < D
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out_a, out_b = tl.zeros([BLOCK_Q, D_A], tl.float32), tl.zeros([BLOCK_Q, D_B], tl.float32)
    for r in range(0, count):
        frame = tl.load(anchors + r).to(tl.int64)
        weight = tl.load(weights + r)
        for start in range(0, tokens, BLOCK_K):
            o_k = start + tl.arange(0, BLOCK_K)
            m_k = o_k < tokens
            # within a frame 32-bit offsets reach everything, and cost half of the registers
            p_k = k + frame * k_frame + o_k[:, None] * k_token
            k_a = tl.load(p_k + o_a[None, :], mask=m_k[:, None] if D >= D_A else m_k[:, None] & m_a[None, :], other=0.0)
            logits = dot(q_a, tl.trans(k_a), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32), PRECISION)
            if SPLIT:
                k_b = tl.load(p_k + o_b[None, :], mask=m_k[:, None] if D == D_A + D_B else m_k[:, None] & m_b[None, :], other=0.0)
                logits = dot(q_b, tl.trans(k_b), logits, PRECISION)
            seen = m_k
            if HAS_KEEP:
                seen = m_k & (tl.load(keep + frame * tokens + o_k, mask=m_k, other=0) != 0)
            # an anchor that counts n times adds log2 n: nothing is read twice
            logits = tl.where(seen[None, :], logits * scale + weight, float("-inf"))
            above = tl.maximum(top, tl.max(logits, 1))
            # rows without a key so far stay -inf: subtract 0, not -inf
            shift = tl.where(above == float("-inf"), 0.0, above)
            p = tl.exp2(logits - shift[:, None])
            fade = tl.exp2(top - shift)
            total = total * fade + tl.sum(p, 1)
            p_v = v + frame * v_frame + o_k[:, None] * v_token
            v_a = tl.load(p_v + o_a[None, :], mask=m_k[:, None] if D >= D_A else m_k[:, None] & m_a[None, :], other=0.0)
            p = p.to(v_a.dtype)
            out_a = dot(p, v_a, out_a * fade[:, None], PRECISION)
            if SPLIT:
                v_b = tl.load(p_v + o_b[None, :], mask=m_k[:, None] if D == D_A + D_B else m_k[:, None] & m_b[None, :], other=0.0)
                out_b = dot(p, v_b, out_b * fade[:, None], PRECISION)
            top = above
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    return out_a * share[:, None], out_b * share[:, None]


@triton.jit
def self_attention_kernel(
    q, k, v, out, q_src, k_src, order, edited, anchors, weights, counts, keep,
    frames, tokens, slots, plain_tiles, tiles, fused_tiles, scale,
    q_branch, q_frame, q_token, k_branch, k_frame, k_token, v_branch, v_frame, v_token,
    q_src_frame, q_src_token, k_src_frame, k_src_token, out_branch, out_frame, out_token,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FUSED: tl.constexpr, HAS_KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tile, head). Tiles: first those of the plain branches, `tiles` a frame, then the fused branch's, `fused_tiles` a frame.

    order: (F, N) rows of the fused branch, edited ones first; edited: (F,) how many. anchors, weights: (F, slots), the first counts[i]
    of a row are used. keep: (B, F, N) uint8. Heads are D apart and D is contiguous in every operand.
    """
    SPLIT: tl.constexpr = D > D_A
    i_tile, i_head = tl.program_id(0), tl.program_id(1)
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
            q_base, q_step, k_base, k_hop, k_step = q_src + i_f * q_src_frame, q_src_token, k_src, k_src_frame, k_src_token
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
            keep + i_b * frames * tokens, tl.load(counts + i_frame), tokens, k_hop, k_step, v_frame, v_token, scale,
            D, D_A, D_B, BLOCK_Q, BLOCK_K, HAS_KEEP, PRECISION,
        )  # fmt: skip
        p_out = out + i_b * out_branch + i_f * out_frame + head + row[:, None] * out_token
        tl.store(p_out + o_a[None, :], out_a.to(out.dtype.element_ty), mask=m_q[:, None] & m_a[None, :])
        if SPLIT:
            tl.store(p_out + o_b[None, :], out_b.to(out.dtype.element_ty), mask=m_q[:, None] & m_b[None, :])


@dataclass(frozen=True)
class Config:
    """How a kernel is compiled: rows and keys of a tile, warps, stages of the loads' pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int


def split(d: int) -> tuple[int, int]:
    """D as two powers of two of at least 16 whose sum is nearest above it: 40 = 32 + 8 (16), 80 = 64 + 16, 160 = 128 + 32."""
    first = max(16, 1 << (d.bit_length() - 1))
    return first, max(16, triton.next_power_of_2(max(d - first, 1)))


def configure(d: int, dtype: torch.dtype, capability: int) -> Config:
    """The tiles for a head size, a dtype and a GPU (80, 86, 89, 90, 100; anything else as 80): without spills, see tests/test_aot.py."""
    if dtype == torch.float32:
        return Config(32, 16 if d > 128 else 32, 8 if d > 64 else 4, 1)
    if capability >= 90:
        return Config(128, 64 if capability < 100 else 32, 8, 2)
    if d > 128:
        return Config(64, 16, 4, 2)
    return Config(128, 32, 8, 2) if d > 64 else Config(128, 64, 8, 2)


def pack_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of each frame, edited ones first, and how many are: (F, N) bool -> (F, N) int32, (F,) int32. Stays on the device."""
    return (~mask).to(torch.uint8).sort(dim=1, stable=True).indices.int(), mask.sum(1, dtype=torch.int32)


def merge_anchors(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each frame's anchors without repetition: (F, R) -> anchors (F, R) int32, log2 of their multiplicity, and how many there are (F,)."""
    same = frames[:, :, None] == frames[:, None, :]
    first = ~torch.tril(same, -1).any(-1)
    order = (~first).to(torch.uint8).sort(dim=1, stable=True).indices
    return frames.gather(1, order).int(), same.sum(-1).float().log2().gather(1, order), first.sum(1, dtype=torch.int32)


def grid_of(branches: int, frames: int, tokens: int, block_q: int, fused: bool, mixed: bool) -> tuple[int, int, int]:
    """Tiles of the plain branches, tiles a frame of theirs, tiles a frame of the fused branch: one more where its mask is mixed."""
    tiles = triton.cdiv(tokens, block_q)
    return (branches - fused) * frames * tiles, tiles, (tiles + mixed) if fused else 0


def capability_of(device: torch.device) -> int:
    if device.type != "cuda" or torch.version.hip:
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def with_contiguous_heads(x: Tensor) -> Tensor:
    """Heads D apart and D contiguous, as linear layers give them; a copy only where they are not."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()


def self_attention(q, k, v, frames, *, q_src=None, k_src=None, mask=None, key_mask=None) -> Tensor:
    """See `fz.kernels.self_attention`."""
    fused = q_src is not None
    q, k, v = (with_contiguous_heads(x.to(v.dtype)) for x in (q, k, v))
    branches, _, tokens, heads, d = v.shape
    f = len(frames)
    q_src, k_src = (with_contiguous_heads(x.to(v.dtype)) for x in (q_src, k_src)) if fused else (q[0], k[0])
    if fused and mask is None:
        # no row is edited: the fused branch has no (q, k) of its own, and none is read
        order, edited = pack_rows(torch.zeros(f, tokens, dtype=torch.bool, device=v.device))
    elif fused:
        order, edited = pack_rows(mask)
    else:
        order = edited = frames  # not read
    anchors, weights, counts = merge_anchors(frames.to(v.device))
    keep = key_mask.contiguous().view(torch.uint8) if key_mask is not None else order
    out = v.new_empty(branches, f, tokens, heads, d)
    config = configure(d, v.dtype, capability_of(v.device))
    plain_tiles, tiles, fused_tiles = grid_of(branches, f, tokens, config.block_q, fused, mask is not None)
    d_a, d_b = split(d)
    self_attention_kernel[(plain_tiles + f * fused_tiles, heads)](
        q, k, v, out, q_src, k_src, order, edited, anchors, weights, counts, keep,
        f, tokens, anchors.shape[1], plain_tiles, tiles, max(fused_tiles, 1), LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *q_src.stride()[:2], *k_src.stride()[:2], *out.stride()[:3],
        D=d, D_A=d_a, D_B=d_b, BLOCK_Q=config.block_q, BLOCK_K=config.block_k, FUSED=fused, HAS_KEEP=key_mask is not None,
        PRECISION="ieee" if v.dtype == torch.float32 else "tf32", num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out
