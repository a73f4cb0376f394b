"""GroupNorm of channels_last features as three Triton kernels: read twice, written once, with what stands around it.

PyTorch's CUDA kernel takes channels_first only: channels_last features are copied before it, and again before the next
convolution. Here a time embedding is added before and SiLU applied after in passing. Statistics are float32, of chunks
of rows that are merged (Chan et al. 1983), in an order that does not depend on timing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# numbers of a tile: 32 for each thread of 4 warps
TILE = 4096
WARPS = 4
# chunks of rows in all: about four programs for each multiprocessor of a large GPU
PROGRAMS = 4 * 132
# chunks of one sample that `merge_kernel` holds at once
MOST_CHUNKS = 64


@triton.jit(do_not_specialize=["rows", "rows_each", "chunks"])
def moments_kernel(
    x, time, parts, rows, channels, rows_each, chunks, time_step,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """Program (chunk of rows, block of channels, sample): each channel's mean and sum of squared differences from it.

    x: (samples, rows, channels); time: a row each `time_step`; parts: (samples, chunks, 2, channels) fp32.
    """
    i_chunk, i_c, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    begin = i_chunk * rows_each
    end = tl.minimum(begin + rows_each, rows)
    # differences from the chunk's first row: a large mean then costs no digits, and threads add up at the end only
    p_x = x + (i_s * rows + begin) * channels
    first = tl.load(p_x + o_c, mask=m_c, other=0.0).to(tl.float32)
    sums, squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(begin, end, BLOCK_R):
        o_r = start + tl.arange(0, BLOCK_R)
        m = (o_r < end)[:, None] & m_c[None, :]
        p = x + (i_s * rows + o_r)[:, None] * channels + o_c[None, :]
        off = tl.where(m, tl.load(p, mask=m, other=0.0).to(tl.float32) - first[None, :], 0.0)
        sums += off
        squares += off * off
    n = (end - begin).to(tl.float32)
    mean = tl.sum(sums, 0) / n
    p_out = parts + (i_s * chunks + i_chunk) * 2 * channels + o_c
    tl.store(p_out + channels, tl.sum(squares, 0) - mean * mean * n, mask=m_c)
    mean += first
    if TIME:
        mean += tl.load(time + i_s * time_step + o_c, mask=m_c, other=0.0).to(tl.float32)
    tl.store(p_out, mean, mask=m_c)


@triton.jit(do_not_specialize=["rows", "rows_each", "chunks"])
def merge_kernel(
    parts, weight, factors, rows, channels, rows_each, chunks, eps,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (group, sample): the factor and the mean of the group's channels, y = (x - mean) factor + bias.

    factors: (samples, 2, channels) fp32.
    """
    i_g, i_s = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_g, o_n = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_N)
    o_c = i_g * GROUP + o_g
    m_g = o_g < GROUP
    m = (o_n < chunks)[:, None] & m_g[None, :]
    p = parts + (i_s * chunks + o_n)[:, None] * 2 * channels + o_c[None, :]
    means, squares = tl.load(p, mask=m, other=0.0), tl.load(p + channels, mask=m, other=0.0)
    n = tl.where(m, tl.minimum(rows - o_n * rows_each, rows_each)[:, None].to(tl.float32), 0.0)
    count = rows.to(tl.float32) * GROUP
    mean = tl.sum(means * n) / count
    gap = tl.where(m, means - mean, 0.0)
    variance = (tl.sum(squares) + tl.sum(gap * gap * n)) / count
    factor = tl.load(weight + o_c, mask=m_g, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    p_out = factors + i_s * 2 * channels + o_c
    tl.store(p_out, factor, mask=m_g)
    tl.store(p_out + channels, mean + tl.zeros([BLOCK_G], tl.float32), mask=m_g)


@triton.jit(do_not_specialize=["rows"])
def apply_kernel(
    x, time, factors, bias, y, rows, channels, time_step,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, TIME: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, block of channels, sample). y: as x."""
    i_r, i_c, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_r, o_c = i_r * BLOCK_R + tl.arange(0, BLOCK_R), i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    factor = tl.load(factors + i_s * 2 * channels + o_c, mask=m_c, other=0.0)
    mean = tl.load(factors + (i_s * 2 + 1) * channels + o_c, mask=m_c, other=0.0)
    offset = tl.load(bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    if TIME:
        mean -= tl.load(time + i_s * time_step + o_c, mask=m_c, other=0.0).to(tl.float32)
    m = (o_r < rows)[:, None] & m_c[None, :]
    at = (i_s * rows + o_r)[:, None] * channels + o_c[None, :]
    v = (tl.load(x + at, mask=m, other=0.0).to(tl.float32) - mean[None, :]) * factor[None, :] + offset[None, :]
    if SILU:
        v = v / (1.0 + tl.exp(-v))
    tl.store(y + at, v.to(y.dtype.element_ty), mask=m)


def group_norm(x, frames, groups, weight, bias, eps, *, time=None, silu=False) -> Tensor:
    """See `fz.kernels.group_norm`."""
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, h, w = x.shape
    samples, rows = n // frames, frames * h * w
    block_c = 64 if channels % 64 == 0 else 32
    block_r, columns = TILE // block_c, triton.cdiv(channels, block_c)
    chunks = max(1, min(MOST_CHUNKS, PROGRAMS // (columns * samples), triton.cdiv(rows, block_r)))
    rows_each = triton.cdiv(triton.cdiv(rows, chunks), block_r) * block_r
    chunks = triton.cdiv(rows, rows_each)
    # both of it, since an allocation costs the host as much as a launch
    memory = torch.empty(samples * (chunks + 1), 2, channels, dtype=torch.float32, device=x.device)
    parts, factors = memory, memory[samples * chunks :]
    y = torch.empty_like(x)
    # rows of frames that share statistics are equal: the first is read
    given, time_step = (x, 0) if time is None else (time.contiguous(), frames * channels)
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    timed = time is not None
    moments_kernel[(chunks, columns, samples)](
        x, given, parts, rows, channels, rows_each, chunks, time_step,
        BLOCK_R=block_r, BLOCK_C=block_c, TIME=timed, **options,
    )  # fmt: skip
    group = channels // groups
    merge_kernel[(groups, samples)](
        parts, weight, factors, rows, channels, rows_each, chunks, eps, GROUP=group,
        BLOCK_G=triton.next_power_of_2(group), BLOCK_N=triton.next_power_of_2(chunks), **options,
    )  # fmt: skip
    apply_kernel[(triton.cdiv(rows, block_r), columns, samples)](
        x, given, factors, bias, y, rows, channels, time_step,
        BLOCK_R=block_r, BLOCK_C=block_c, TIME=timed, SILU=silu, **options,
    )  # fmt: skip
    return y
