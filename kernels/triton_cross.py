"""Cross-attention to 77 text tokens in Triton: the edit's and the source's attention, summed, in one launch.

The values are mixed beforehand (`fz.fusion`), so that fusing two maps is adding two attentions; one whose values are
nothing is skipped. A prompt's keys and values stay with a program, and tiles of queries stream past them. Where a map
is wanted, every head leaves its own softmax, and their mean is taken afterwards: heads run side by side. Forward only.
float32 goes by `triton_cross_fp32.py`, whose products have no tensor cores and want other tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fz.kernels import triton_cross_fp32
from fz.kernels.triton_self import dot
from fz.kernels.triton_tiles import LOG2E, Tiles, capability_of, columns, cross_tiles, with_contiguous_heads

# programs in all where there are enough tiles: about three waves of a large GPU's resident ones
PROGRAMS = 3 * 3 * 132


@triton.jit
def load_part(base, o_r, m_r, step, o_d, D: tl.constexpr):
    """(rows, columns) of a head."""
    return tl.load(base + o_r[:, None] * step + o_d[None, :], mask=m_r[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def store_part(part, p_out, m_q, o_d, D: tl.constexpr, ADD: tl.constexpr):
    """A tile's columns, added to what is there if ADD."""
    p, m = p_out + o_d[None, :], m_q[:, None] & (o_d < D)[None, :]
    if ADD:
        part += tl.load(p, mask=m, other=0.0).to(tl.float32)
    tl.store(p, part.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def stream_queries(
    q, q_token, k, k_token, v, v_token, out, out_token, maps, mapped, begin, end, tokens, keys, scale,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, BLOCK_Q: tl.constexpr,
    ADD: tl.constexpr, MAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows [begin, end) of out = softmax(q kᵀ) v of one head, added to what is there if ADD; D, keys in two parts."""
    SPLIT: tl.constexpr = D > D_A
    o_a, o_b = tl.arange(0, D_A), D_A + tl.arange(0, D_B)
    l_a, l_b = tl.arange(0, L_A), L_A + tl.arange(0, L_B)
    n_a, n_b = l_a < keys, l_b < keys
    k_aa, v_aa = load_part(k, l_a, n_a, k_token, o_a, D), load_part(v, l_a, n_a, v_token, o_a, D)
    k_ba, v_ba = load_part(k, l_b, n_b, k_token, o_a, D), load_part(v, l_b, n_b, v_token, o_a, D)
    if SPLIT:
        k_ab, v_ab = load_part(k, l_a, n_a, k_token, o_b, D), load_part(v, l_a, n_a, v_token, o_b, D)
        k_bb, v_bb = load_part(k, l_b, n_b, k_token, o_b, D), load_part(v, l_b, n_b, v_token, o_b, D)
    for start in tl.range(begin, end, BLOCK_Q, num_stages=STAGES):
        row = start + tl.arange(0, BLOCK_Q)
        m_q = row < tokens
        q_part = load_part(q, row, m_q, q_token, o_a, D)
        logits_a = dot(q_part, tl.trans(k_aa), tl.zeros([BLOCK_Q, L_A], tl.float32), "tf32")
        logits_b = dot(q_part, tl.trans(k_ba), tl.zeros([BLOCK_Q, L_B], tl.float32), "tf32")
        if SPLIT:
            q_part = load_part(q, row, m_q, q_token, o_b, D)
            logits_a = dot(q_part, tl.trans(k_ab), logits_a, "tf32")
            logits_b = dot(q_part, tl.trans(k_bb), logits_b, "tf32")
        logits_a = tl.where(n_a[None, :], logits_a, float("-inf"))
        logits_b = tl.where(n_b[None, :], logits_b, float("-inf"))
        m_i = tl.maximum(tl.max(logits_a, 1), tl.max(logits_b, 1)) * scale
        p_a, p_b = tl.exp2(logits_a * scale - m_i[:, None]), tl.exp2(logits_b * scale - m_i[:, None])
        share = 1.0 / (tl.sum(p_a, 1) + tl.sum(p_b, 1))
        p_a, p_b = p_a * share[:, None], p_b * share[:, None]
        if MAP:
            if mapped:
                p_map = maps + row[:, None] * (L_A + L_B)
                tl.store(p_map + l_a[None, :], p_a, mask=m_q[:, None])
                tl.store(p_map + l_b[None, :], p_b, mask=m_q[:, None])
        h_a, h_b = p_a.to(v_aa.dtype), p_b.to(v_aa.dtype)
        part = dot(h_a, v_aa, tl.zeros([BLOCK_Q, D_A], tl.float32), "tf32")
        p_out = out + row[:, None] * out_token
        store_part(dot(h_b, v_ba, part, "tf32"), p_out, m_q, o_a, D, ADD)
        if SPLIT:
            part = dot(h_a, v_ab, tl.zeros([BLOCK_Q, D_B], tl.float32), "tf32")
            store_part(dot(h_b, v_bb, part, "tf32"), p_out, m_q, o_b, D, ADD)


UNSPECIALIZED = [
    *("frames", "tokens", "keys", "heads", "chunks", "rows"),
    *("map_branch", "fused_branch", "map_head", "map_frame"),
]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def cross_attention_kernel(
    q, k, v, out, q_src, k_src, v_src, maps,
    frames, tokens, keys, heads, chunks, rows, map_branch, fused_branch, scale,
    q_branch, q_frame, q_token, k_branch, k_token, v_branch, v_token,
    q_src_frame, q_src_token, k_src_token, v_src_token, out_branch, out_frame, out_token,
    map_head, map_frame,
    D: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, L_A: tl.constexpr, L_B: tl.constexpr, BLOCK_Q: tl.constexpr,
    FUSED: tl.constexpr, EDIT: tl.constexpr, MAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program chunk · heads + head: `rows` rows of a frame of a branch, `chunks` a frame.

    EDIT: the fused branch has queries of its own. maps: (heads, F, N, L) fp32, the softmax of `map_branch`'s.
    """
    i_head, i_chunk = tl.program_id(0) % heads, tl.program_id(0) // heads
    i_b, i_f = (i_chunk // (frames * chunks)).to(tl.int64), (i_chunk // chunks % frames).to(tl.int64)
    begin = i_chunk % chunks * rows
    end = tl.minimum(begin + rows, tokens)
    head = i_head * D
    p_out = out + i_b * out_branch + i_f * out_frame + head
    p_map = maps + i_head.to(tl.int64) * map_head + i_f * map_frame
    p_q, p_k, p_v = q + i_b * q_branch + i_f * q_frame + head, k + i_b * k_branch + head, v + i_b * v_branch + head
    if FUSED and i_b == fused_branch:
        stream_queries(q_src + i_f * q_src_frame + head, q_src_token, k_src + head, k_src_token, v_src + head,
                       v_src_token, p_out, out_token, p_map, False, begin, end, tokens, keys, scale,
                       D, D_A, D_B, L_A, L_B, BLOCK_Q, False, False, STAGES)  # fmt: skip
        if EDIT:
            # the sum is of rows that other threads of this program may have stored
            tl.debug_barrier()
            stream_queries(p_q, q_token, p_k, k_token, p_v, v_token, p_out, out_token, p_map,
                           i_b == map_branch, begin, end, tokens, keys, scale,
                           D, D_A, D_B, L_A, L_B, BLOCK_Q, True, MAP, STAGES)  # fmt: skip
    else:
        stream_queries(p_q, q_token, p_k, k_token, p_v, v_token, p_out, out_token, p_map,
                       i_b == map_branch, begin, end, tokens, keys, scale,
                       D, D_A, D_B, L_A, L_B, BLOCK_Q, False, MAP, STAGES)  # fmt: skip


def rows_each(tokens: int, block_q: int, programs: int) -> int:
    """Rows of a frame for one program, a multiple of a tile's: as many as leave `PROGRAMS` of `programs` of a tile."""
    return block_q * max(1, min(triton.cdiv(tokens, block_q), programs // PROGRAMS))


def cross_attention(
    q, k, v, *, q_src=None, k_src=None, v_src=None, map_branch=None, map_weights=None, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor | None]:
    """See `fz.kernels.cross_attention`. tiles: others than the table's, for half types."""
    fused, mapped = q_src is not None, map_branch is not None
    q, k, v = (with_contiguous_heads(x.to(v.dtype)) for x in (q, k, v))
    sources = (with_contiguous_heads(x.to(v.dtype)) for x in (q_src, k_src, v_src)) if fused else (q[0], k[0], v[0])
    branches, keys, heads, d = v.shape
    f, tokens = q.shape[1:3]
    l_a, l_b = columns(keys)
    out = torch.empty((branches, f, tokens, heads, d), dtype=v.dtype, device=v.device)
    maps = torch.empty((heads, f, tokens, l_a + l_b), dtype=torch.float32, device=v.device) if mapped else out
    branch = range(len(q))[map_branch] if mapped else 0
    operands = (q, k, v, out, *sources, maps)
    if v.dtype == torch.float32:
        triton_cross_fp32.attend(*operands, branch, fused, mapped)
    else:
        tiles = tiles or cross_tiles(d, capability_of(v.device))
        attend(*operands, branch, fused, mapped, tiles)
    if not mapped:
        return out, None
    maps = maps[..., :keys].mean(0)
    return out, maps if map_weights is None else maps @ map_weights.to(maps)


def attend(q, k, v, out, q_src, k_src, v_src, maps, map_branch: int, fused: bool, mapped: bool, tiles: Tiles) -> None:
    """One launch; maps (Nh, F, N, keys, padded) is written where `mapped`."""
    branches, keys, heads, d = v.shape
    f, tokens = q.shape[1:3]
    programs = branches * f * triton.cdiv(tokens, tiles.block_q) * heads
    rows = rows_each(tokens, tiles.block_q, programs)
    chunks = triton.cdiv(tokens, rows)
    (d_a, d_b), (l_a, l_b) = columns(d, whole=d <= 64), columns(keys)
    cross_attention_kernel[(branches * f * chunks * heads,)](
        q, k, v, out, q_src, k_src, v_src, maps,
        f, tokens, keys, heads, chunks, rows, map_branch, branches - 1, LOG2E * d**-0.5,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *q_src.stride()[:2], k_src.stride(0), v_src.stride(0),
        *out.stride()[:3], *maps.stride()[:2],
        D=d, D_A=d_a, D_B=d_b, L_A=l_a, L_B=l_b, BLOCK_Q=tiles.block_q, FUSED=fused, EDIT=len(q) == branches,
        MAP=mapped, STAGES=tiles.stages, num_warps=tiles.warps, enable_fp_fusion=True,
    )  # fmt: skip
