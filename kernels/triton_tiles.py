"""How the self-attention kernels are tiled: a table by GPU, dtype and head size, chosen by compiled code, not by time.

Beside a row: registers a thread, CTAs a multiprocessor, and issue cycles of a multiprocessor for 128 x 64 logits, whose
exponentials alone take 544 (fp16, triton 3.9; `bench/ROOFLINE.md` has them all). None has been timed on a GPU:
`bench.gpu` does.
"""

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Tiles:
    """How a kernel is compiled: rows and keys of a tile, warps, stages of the loads' pipeline.

    tma: keys and values come by TMA where the operands allow it; else by pointers. special: by `triton_plain`, a warp
    group that loads and two that compute, where nothing is fused and the operands allow it. precision: of products of
    float32; 'tf32x3' is three of tensor cores, whose sum has float32's digits.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False
    special: bool = False
    precision: str = "tf32"


# what a GPU of a compute capability is compiled like: its matrix instructions and its shared memory decide
FAMILIES = {80: 80, 86: 86, 87: 80, 89: 86, 90: 90, 100: 100, 103: 100, 120: 86, 121: 86}

# (family, widest head) -> tiles of half types where rows are fused
FUSED = {
    (80, 64): Tiles(128, 64, 8, 3),
    (80, 128): Tiles(128, 32, 8, 3),
    (80, 256): Tiles(64, 16, 4, 3),
    (86, 64): Tiles(128, 64, 8, 3),
    (86, 128): Tiles(128, 32, 8, 3),
    (86, 256): Tiles(64, 16, 4, 2),
    (90, 64): Tiles(128, 64, 4, 3, tma=True),  # 196 registers, 2 CTAs, 518; by pointers 8 warps: 144, 1 CTA, 644
    (90, 128): Tiles(128, 64, 4, 2, tma=True),  # 216, 2 CTAs, 616
    (90, 256): Tiles(64, 64, 4, 2, tma=True),  # 171, 2 CTAs, 868; a third stage leaves 1 CTA
    (100, 64): Tiles(128, 64, 4, 3, tma=True),
    (100, 128): Tiles(128, 64, 8, 3),
    (100, 256): Tiles(128, 32, 8, 3),
}
# tiles where nothing is fused, if they are others
PLAIN = {(90, 64): Tiles(128, 128, 4, 2, tma=True, special=True)}  # 168, 12 warps, 473
# (family, or 0 for every GPU, widest head) -> tiles of float32. On 9.0 by fused multiply-adds D = 40 takes 9456
FP32 = {
    (90, 64): Tiles(128, 32, 8, 2, precision="tf32x3"),  # 179, 1 CTA, 3052
    (90, 128): Tiles(64, 32, 4, 1, precision="tf32x3"),  # 224, 2 CTAs, 4028
    (0, 64): Tiles(128, 32, 8, 2, precision="tf32x3"),  # on 8.0 254, 1 CTA, 4856
    (0, 128): Tiles(32, 32, 8, 1, precision="ieee"),  # as tf32x3 it spills, as do wider heads everywhere
    (0, 256): Tiles(32, 16, 8, 1, precision="ieee"),
}


def self_tiles(d: int, dtype: torch.dtype, capability: int, fused: bool) -> Tiles:
    """Tiles by head size, dtype, a GPU's compute capability (10 · major + minor; unknown ones as 80), kind of layer."""
    family = FAMILIES.get(capability, 80)
    if dtype == torch.float32:
        return next(tiles for (of, widest), tiles in FP32.items() if of in (family, 0) and d <= widest)
    key = next(key for key in FUSED if key[0] == family and d <= key[1])
    return FUSED[key] if fused else PLAIN.get(key, FUSED[key])


def cross_tiles(d: int, capability: int) -> Tiles:
    """The tiles of cross-attention for half types; all keys are one tile."""
    # a second stage of wide heads' queries spills; by fewer warps the map of the widest does on 10.0
    if d > 128 and FAMILIES.get(capability, 80) == 100:
        return Tiles(64, 0, 8, 1)
    return Tiles(64, 0, 4, 1 if d > 64 else 2)


def columns(d: int, whole: bool = False) -> tuple[int, int]:
    """D as two powers of two of at least 16 whose sum is nearest above it: 40 = 32 + 16, 80 = 64 + 16, 160 = 128 + 32.

    whole: as one, padded (and a second part that is not used).
    """
    if whole:
        return max(16, triton.next_power_of_2(d)), 16
    first = max(16, 1 << (d.bit_length() - 1))
    return first, max(16, triton.next_power_of_2(max(d - first, 1)))


def by_tma(*operands: Tensor) -> bool:
    """Whether TMA can read these heads (…, Nh, D): it takes addresses and strides of a multiple of 16 bytes."""
    if not _knows_tma():
        return False
    return all(
        x.data_ptr() % 16 == 0
        and x.shape[-1] * x.itemsize % 16 == 0
        and all(s > 0 and s * x.itemsize % 16 == 0 for s in x.stride()[:-2])
        for x in operands
    )


@functools.cache
def _knows_tma() -> bool:
    """Whether this triton has descriptors as they are written here."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)


def provide_memory(device: torch.device) -> None:
    """Give Triton's next launch the memory where a kernel writes its TMA descriptors."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))


def capability_of(device: torch.device) -> int:
    """10 · major + minor of an NVIDIA GPU; 80 for everything else."""
    if device.type != "cuda" or torch.version.hip:
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def with_contiguous_heads(x: Tensor) -> Tensor:
    """Heads D apart and D contiguous, as linear layers give them; a copy only where they are not."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()
