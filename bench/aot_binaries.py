"""The Triton kernels as their launchers have them compiled for GPUs that are not here: registers, spills, instructions.

A launcher is called with operands that have shapes and strides only; what it would launch, with the values that Triton
specialises on, is compiled ahead of time and taken apart by the tools that triton carries (cuobjdump, nvdisasm).
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.gpus import SHARED, THREADS
from fz.kernels import triton_cross, triton_cross_fp32, triton_norm, triton_plain, triton_self

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.uint8: "u8"}
KERNELS = (
    (triton_self, "self_attention_kernel"),
    (triton_plain, "plain_attention_kernel"),
    (triton_cross, "cross_attention_kernel"),
    (triton_cross_fp32, "cross_attention_fp32_kernel"),
    (triton_norm, "moments_kernel"),
    (triton_norm, "merge_kernel"),
    (triton_norm, "apply_kernel"),
)
FRAMES, HEADS, WORDS = 8, 8, 77
# SD v1.4's heads at 512 x 512: D -> tokens of a frame
TOKENS = {40: 4096, 80: 1024, 160: 256}
MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\.([0-9]+x[0-9]+x[0-9]+)?")


@dataclass(frozen=True)
class Launch:
    """What a launcher asks for: the kernel, its arguments by name, and options of the compiler."""

    kernel: object
    arguments: dict[str, object]
    warps: int
    options: dict[str, object]

    def constant(self, name: str) -> int:
        return self.arguments[name]


@dataclass(frozen=True)
class Loop:
    """A loop with exponentials: instructions, and of them products of tensor cores, waits of theirs, barriers."""

    instructions: int
    matrix: int
    arrive: int
    barriers: int


@dataclass(frozen=True)
class Compiled:
    """registers a thread; spills: bytes of local memory a thread; shared: bytes a block; warps: a block's, loaders
    included; ctas: blocks that fit a multiprocessor; matrix: matrix instructions by mnemonic; loops: innermost ones.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    ctas: int
    matrix: dict[str, int]
    loops: tuple[Loop, ...]
    assembly: str


class Launched:
    """In a kernel's place: keeps what it would be launched with."""

    def __init__(self, kernel: object, found: list[Launch]):
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: object, **named: object) -> None:
            names = self.kernel.arg_names
            arguments = dict(zip(names, args, strict=False)) | {n: v for n, v in named.items() if n in names}
            options = {n: v for n, v in named.items() if n not in names}
            self.found.append(Launch(self.kernel, arguments, options.get("num_warps", 4), options))

        return launch


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Launches within the block are kept instead; the GPU seems to be of that compute capability."""
    found: list[Launch] = []
    with (
        mock.patch.object(triton_self, "capability_of", lambda device: capability),
        mock.patch.object(triton_cross, "capability_of", lambda device: capability),
    ):
        patches = [mock.patch.object(m, name, Launched(getattr(m, name), found)) for m, name in KERNELS]
        for patch in patches:
            patch.start()
        try:
            yield found
        finally:
            for patch in patches:
                patch.stop()


def operand(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def self_attention_launch(
    d: int, dtype: torch.dtype, capability: int, fused: bool = True, key_mask: bool = False, tokens: int | None = None
) -> Launch:
    """Two branches of 8 frames that read two each, as at 512 x 512; fused: the last one, by a mixed mask."""
    n = tokens or TOKENS[d]
    x = operand(2, FRAMES, n, HEADS, d, dtype=dtype)
    mask = torch.empty(FRAMES, n, dtype=torch.bool, device="meta")
    options = {"q_src": x[0], "k_src": x[0], "mask": mask} if fused else {}
    if key_mask:
        options["key_mask"] = mask.expand(2, -1, -1)
    table = torch.tensor([[i, 3] for i in range(FRAMES)])
    with recorded(capability) as found:
        triton_self.self_attention(x, x, x, table, **options)
    return found[0]


def cross_attention_launch(
    d: int, dtype: torch.dtype, capability: int, fused: bool = True, edit: bool = True, mapped: bool = False
) -> Launch:
    """Two branches of 8 frames; edit: the fused one has queries of its own; mapped: a map is wanted."""
    q = operand(2, FRAMES, TOKENS[d], HEADS, d, dtype=dtype)
    k = operand(2, WORDS, HEADS, d, dtype=dtype)
    options = {"q_src": q[0], "k_src": k[0], "v_src": k[0]} if fused else {}
    with recorded(capability) as found:
        triton_cross.cross_attention(
            q if edit else q[:-1], k, k, map_branch=(-1 if edit else 0) if mapped else None, **options
        )
    return found[0]


def norm_launches(channels: int, dtype: torch.dtype, capability: int) -> list[Launch]:
    """A clip's norm, with time embedding and SiLU."""
    x = operand(2 * FRAMES, channels, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, time = operand(channels, dtype=dtype), operand(2 * FRAMES, channels, dtype=dtype)
    with recorded(capability) as found:
        triton_norm.group_norm(x, FRAMES, 32, weight, weight, 1e-5, time=time, silu=True)
    return found


def build(launch: Launch, target: GPUTarget):
    """Triton's compiled kernel. Pointers are multiples of 16, as the allocator's are; other values as launched."""
    kernel, signature, constants, aligned = launch.kernel, {}, {}, {}
    for i, param in enumerate(kernel.params):
        name, value = param.name, launch.arguments[param.name]
        free = param.do_not_specialize
        if param.is_constexpr or (type(value) is int and value == 1 and not free):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
        if signature[name][0] in "*" or (signature[name][0] == "i" and not free and value % 16 == 0):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {n: v for n, v in launch.options.items() if n in ("num_warps", "num_stages", "enable_fp_fusion")}
    return triton.compile(source, target=target, options=options)


def tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """The binary of a launch on an NVIDIA GPU. Raises RuntimeError if triton or its tools cannot make it."""
    built = build(launch, GPUTarget("cuda", capability, 32))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = printed("cuobjdump", "-res-usage", str(cubin))
        assembly = printed("nvdisasm", "-c", str(cubin))
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    matrix: dict[str, int] = {}
    for line in assembly.splitlines():
        if found := MATRIX.search(line):
            key = ".".join(part for part in found.groups() if part)
            matrix[key] = matrix.get(key, 0) + 1
    shared, warps = built.metadata.shared, max(built.metadata.num_warps, launch.warps)
    return Compiled(
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        shared,
        warps,
        blocks(numbers["REG"], shared, warps, capability),
        matrix,
        loops_of(assembly),
        assembly,
    )


def printed(name: str, *words: str) -> str:
    return subprocess.run([tool(name), *words], capture_output=True, text=True, check=True).stdout


def blocks(registers: int, shared: int, warps: int, capability: int) -> int:
    """Blocks of a multiprocessor by its registers, its shared memory (1 KB a block is the system's) and its threads."""
    of_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    of_shared = (SHARED[capability] + 1024) // (shared + 1024)
    return min(of_registers, of_shared, THREADS[capability] // (32 * warps))


def loops_of(assembly: str) -> tuple[Loop, ...]:
    """Innermost loops with exponentials. A branch back that crosses a smaller loop is a wait, and none of them."""
    code, labels = [], {}
    for line in assembly.splitlines():
        line = line.strip()
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"/\*[0-9a-f]{4,}\*/\s+(.*)", line):
            code.append(re.sub(r"^@!?U?P\d+\s+", "", found[1]))
    spans = []
    for i, text in enumerate(code):
        found = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", text)
        if found and labels.get(found[1], i + 1) <= i:
            spans.append((labels[found[1]], i + 1))
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: span[1] - span[0]):
        if not any("MUFU.EX2" in text for text in code[start:end]):
            continue
        if all(end <= a or b <= start for a, b in chosen):
            chosen.append((start, end))

    def count(start: int, end: int, pattern: str) -> int:
        return sum(bool(re.match(pattern, text)) for text in code[start:end])

    return tuple(
        Loop(
            end - start,
            count(start, end, r"HGMMA|HMMA|UTC\w*MMA"),
            count(start, end, r"WARPGROUP\.ARRIVE"),
            count(start, end, r"BAR\.SYNC"),
        )
        for start, end in sorted(chosen)
    )


def issue_cycles(launch: Launch, compiled: Compiled) -> float:
    """Cycles that a multiprocessor's four schedulers take to issue the loop over keys, for 128 x 64 logits.

    Of a kernel whose warps are specialised, the loops of those that compute, side by side.
    """
    tile = launch.constant("BLOCK_Q") * launch.constant("BLOCK_K")
    if compiled.warps > launch.warps:
        instructions = sum(loop.instructions for loop in compiled.loops)
    else:
        instructions = min(loop.instructions for loop in compiled.loops)
    return instructions * launch.warps / 4 * 128 * 64 / tile


def compile_for_amd(launch: Launch) -> str:
    """The assembly for an MI300 (gfx942) of what is launched with the tiles of capability 8.0."""
    return build(launch, GPUTarget("hip", "gfx942", 64)).asm["amdgcn"]


def rows(capability: int, dtype: torch.dtype = torch.float16) -> Iterator[list[str]]:
    """A row for each binary of Stable Diffusion's sites: kernel, D, kind, tile, and what was counted."""
    for d in TOKENS:
        for fused in (False, True):
            launch = self_attention_launch(d, dtype, capability, fused)
            compiled = compile_launch(launch, capability)
            tile = f"{launch.constant('BLOCK_Q')}x{launch.constant('BLOCK_K')}"
            yield [f"self D{d}", "fused" if fused else "plain", tile, *shown(launch, compiled),
                   f"{issue_cycles(launch, compiled):.0f}"]  # fmt: skip
    for d in TOKENS:
        for kind in ("plain", "fused", "fused, map"):
            launch = cross_attention_launch(d, dtype, capability, kind != "plain", mapped="map" in kind)
            compiled = compile_launch(launch, capability)
            yield [f"cross D{d}", kind, f"{launch.constant('BLOCK_Q')} rows", *shown(launch, compiled), ""]
    for launch in norm_launches(320, dtype, capability):
        compiled = compile_launch(launch, capability)
        yield [f"norm, {launch.kernel.__name__.removesuffix('_kernel')}", "clip", "", *shown(launch, compiled), ""]


def shown(launch: Launch, compiled: Compiled) -> list[str]:
    loops = compiled.loops or (Loop(0, 0, 0, 0),)
    least = min(loops, key=lambda loop: loop.instructions)
    counted = (compiled.warps, compiled.registers, compiled.spills, compiled.shared // 1024, compiled.ctas)
    return [*map(str, counted), str(least.matrix), str(least.arrive), str(least.barriers)]


HEAD = ["kernel", "kind", "tile", "warps", "registers", "spills", "shared, KB", "CTAs", "matrix a loop", "ARRIVE",
        "barriers", "issue, 128x64"]  # fmt: skip


def print_table(capability: int) -> None:
    print(f"triton {triton.__version__}, sm_{capability}, fp16")
    print(" | ".join(HEAD))
    for row in rows(capability):
        print(" | ".join(row), flush=True)
