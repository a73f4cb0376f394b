"""Matrix products with a fixed right-hand side on a CPU: the weight is packed once, for oneDNN, and used many times.

PyTorch sends float32 products to MKL, which takes its slow paths on CPUs that are not Intel's, less than half of
oneDNN's speed. Which of the two a machine takes is decided by what the machine is, never by a clock: equal machines
compute equal bits. Packing costs a second copy of the weight. Inference in float32 or bfloat16.
"""

import functools
import platform
import re
from pathlib import Path

import torch
from torch import Tensor

CPUINFO = Path("/proc/cpuinfo")


class Packed:
    """x -> x weightᵀ + bias, weight (C_out, C_in) float32 or bfloat16 in oneDNN's own order; rows: how many x will
    usually have.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, rows: int = 1024):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(x weightᵀ + bias), exact gelu, in one pass."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x weightᵀ + bias) ⊙ other, in one pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")


def has_packed() -> bool:
    """Has this PyTorch oneDNN's products with packed weights?"""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def multiplies_bfloat16() -> bool:
    """Has this CPU products of bfloat16 (avx512_bf16 or AMX), and this PyTorch oneDNN's use of them?"""
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return has_packed() and any(getattr(torch.cpu, name, lambda: False)() for name in flags)


def identified(linux: str, elsewhere: str) -> str:
    """What the CPU says of itself, by a pattern in /proc/cpuinfo or, where there is none, in `platform.processor()`
    ('AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD' on Windows, 'i386' or 'arm' on macOS); '' where it does not.
    """
    try:
        found = re.search(linux, CPUINFO.read_text(), re.M)
    except OSError:
        found = re.search(elsewhere, platform.processor())
    return found.group(1) if found else ""


def vendor() -> str:
    """The CPU's vendor as CPUID says it ('GenuineIntel', 'AuthenticAMD', ...); '' for no x86, and for macOS's, which
    are Intel's.
    """
    return identified(r"^vendor_id\s*:\s*(\S+)", r", (\S+)$")


def family() -> int:
    """The CPU's family as CPUID says it (Zen 4: 25, Zen 5: 26); 0 where it does not."""
    return int(identified(r"^cpu family\s*:\s*(\d+)", r"Family (\d+)") or 0)


@functools.cache
def vector_bits() -> int:
    """Bits that a multiply-add of this CPU takes at once: 512, or 256 where AVX-512 comes in halves (AMD's before
    family 26) or not at all. There MKL, which takes AVX2 on CPUs that are not Intel's, loses nothing by it.
    """
    whole = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return 512 if whole and not (vendor() == "AuthenticAMD" and family() < 26) else 256


@functools.cache
def prefers_onednn() -> bool:
    """Do packed products beat PyTorch's own on this machine? Where those are MKL's on a CPU with AVX2, not Intel's."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return has_packed() and torch.backends.mkl.is_available() and wide and vendor() not in ("", "GenuineIntel")
