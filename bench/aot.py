"""Compiles the Triton kernels ahead of time for GPUs that are not here, and reads registers, spills, shared memory and instructions.

The tools are those that triton carries (cuobjdump, nvdisasm). Each kernel is compiled as its launcher would have it compiled: constants
from the same tables, pointers and strides with the alignment that real operands have.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fz.kernels import triton_cross, triton_self

NVIDIA = (80, 86, 89, 90, 100)
# bytes of shared memory that one block may have (CUDA C programming guide, technical specifications per compute capability)
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# arguments that are floats, and integers that need not be multiples of 16
SCALARS = {"scale": "fp32"}
ODD = {
    "frames",
    "slots",
    "plain_tiles",
    "tiles",
    "fused_tiles",
    "keys",
    "heads",
    "map_branch",
    "fused_branch",
    "map_frame",
    "map_token",
}
MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\.([0-9]+x[0-9]+x[0-9]+)?")


@dataclass(frozen=True)
class Compiled:
    """registers a thread; spills: bytes of local memory a thread; shared: bytes a block; matrix: matrix instructions by mnemonic."""

    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    assembly: str


def tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def compile_kernel(
    kernel, pointers: dict[str, torch.dtype], constants: dict, capability: int, warps: int, stages: int
) -> Compiled:
    """Compile for an NVIDIA GPU of that compute capability. pointers: element types; every other argument is an int32 multiple of 16,
    but for names in `SCALARS`. Raises RuntimeError if triton or its tools cannot."""
    built = build(kernel, pointers, constants, GPUTarget("cuda", capability, 32), warps, stages)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = subprocess.run(
            [tool("cuobjdump"), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        assembly = subprocess.run(
            [tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    matrix: dict[str, int] = {}
    for line in assembly.splitlines():
        if found := MATRIX.search(line):
            key = ".".join(part for part in found.groups() if part)
            matrix[key] = matrix.get(key, 0) + 1
    return Compiled(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], built.metadata.shared, matrix, assembly)


def compile_for_amd(
    kernel, pointers: dict[str, torch.dtype], constants: dict, capability: int, warps: int, stages: int
) -> str:
    """The assembly for an MI300 (gfx942). The arguments are `compile_kernel`'s; the capability is not used."""
    return build(kernel, pointers, constants, GPUTarget("hip", "gfx942", 64), warps, stages).asm["amdgcn"]


def build(kernel, pointers: dict[str, torch.dtype], constants: dict, target: GPUTarget, warps: int, stages: int):
    """Triton's compiled kernel for a target."""
    names = {torch.int32: "i32", torch.uint8: "u8", **TYPES}
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = f"*{names[pointers[name]]}" if name in pointers else SCALARS.get(name, "i32")
        if name in pointers or (name not in SCALARS and name not in ODD):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def self_attention_case(
    d: int, dtype: torch.dtype, capability: int, fused: bool = True, key_mask: bool = False
) -> tuple:
    """Arguments of `compile_kernel` for the self-attention kernel as its launcher configures it."""
    config = triton_self.configure(d, dtype, capability)
    d_a, d_b = triton_self.split(d)
    pointers = dict.fromkeys(("q", "k", "v", "out", "q_src", "k_src"), dtype)
    pointers |= dict.fromkeys(("order", "edited", "anchors", "counts"), torch.int32) | {
        "weights": torch.float32,
        "keep": torch.uint8,
    }
    constants = {"D": d, "D_A": d_a, "D_B": d_b, "BLOCK_Q": config.block_q, "BLOCK_K": config.block_k, "FUSED": fused,
                 "HAS_KEEP": key_mask, "PRECISION": precision(dtype)}  # fmt: skip
    return triton_self.self_attention_kernel, pointers, constants, capability, config.warps, config.stages


def cross_attention_case(
    d: int, dtype: torch.dtype, capability: int, fused: bool = True, edit: bool = True, mapped: bool = False
) -> tuple:
    """Arguments of `compile_kernel` for the cross-attention kernel, 77 keys, as its launcher configures it."""
    config = triton_cross.configure(dtype)
    l_a, l_b = triton_self.split(77)
    pointers = dict.fromkeys(("q", "k", "v", "out", "q_src", "k_src", "v_src"), dtype) | {"maps": torch.float32}
    constants = {"D": d, "BLOCK_D": triton_cross.head_block(d, dtype), "L_A": l_a, "L_B": l_b, "BLOCK_Q": config.block_q, "FUSED": fused,
                 "EDIT": edit, "MAP": mapped, "PRECISION": precision(dtype)}  # fmt: skip
    return triton_cross.cross_attention_kernel, pointers, constants, capability, config.warps, config.stages


def precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"
