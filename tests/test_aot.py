"""The Triton kernels compiled ahead of time for GPUs that are not here, as their launchers have them compiled there.

No spill, shared memory that the chip has, few matrix instructions, few issue cycles; read from machine code
(`bench.aot`).
"""

import functools
import math
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from bench import aot_binaries as aot  # noqa: E402
from bench.gpus import NVIDIA, SHARED  # noqa: E402

HALF = (torch.float16, torch.bfloat16)
HEADS = (40, 80, 160)
SOME_HEADS = [40, pytest.param(80, marks=pytest.mark.slow), 160]


@functools.cache
def compiler() -> ProcessPoolExecutor:
    """A process in which kernels can be compiled: in this one they are interpreted."""
    before = os.environ.pop("TRITON_INTERPRET")
    try:
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()
        return pool
    finally:
        os.environ["TRITON_INTERPRET"] = before


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """The test, to be run by `compiler`."""

    @functools.wraps(test)
    def run(**parameters: object) -> None:
        compiler().submit(call, test.__name__, parameters).result()

    return run


def call(name: str, parameters: dict[str, object]) -> None:
    globals()[name].__wrapped__(**parameters)


def multiplied(compiled: aot.Compiled, warps: int) -> int:
    """Multiply-adds of a kernel's matrix instructions, each once: HMMA is a warp's, HGMMA a group's of four warps."""
    total = 0
    for name, count in compiled.matrix.items():
        group = 4 if name.startswith("HGMMA") else 1
        shape = re.search(r"(\d+)x(\d+)x(\d+)", name)
        total += count * (math.prod(map(int, shape.groups())) if shape else 16 * 8 * 16) * warps // group
    return total


def check(launch: aot.Launch, capability: int) -> aot.Compiled:
    compiled = aot.compile_launch(launch, capability)
    assert compiled.spills == 0
    assert compiled.shared <= SHARED[capability] and compiled.ctas >= 1
    return compiled


# (D, fused) -> most issue cycles for 128 x 64 logits on sm_90; exponentials take 544, the products with D unpadded 384
CYCLES = {(40, True): 620, (40, False): 480, (80, True): 640, (160, True): 900}


@pytest.mark.parametrize(("d", "fused"), CYCLES, ids=str)
@apart
def test_self_attention_on_hopper(d, fused):
    launch = aot.self_attention_launch(d, torch.float16, 90, fused)
    compiled = check(launch, 90)
    assert aot.issue_cycles(launch, compiled) <= CYCLES[d, fused]
    # a warp group that loads, or another block that computes meanwhile
    assert compiled.warps > launch.warps or compiled.ctas >= 2
    # products wait for their operands once or twice; ptxas that serialises them would wait before each
    assert all(loop.matrix and loop.arrive <= 4 for loop in compiled.loops)
    assert any(name.startswith("HGMMA") for name in compiled.matrix)


@pytest.mark.parametrize("d", SOME_HEADS)
@apart
def test_self_attention_on_ampere(d):
    launch = aot.self_attention_launch(d, torch.float16, 80)
    least = 2 * launch.constant("BLOCK_Q") * launch.constant("BLOCK_K") * d
    # padding D to a power of two would be 1.6 times
    assert least <= multiplied(check(launch, 80), launch.warps) <= 1.25 * least


@pytest.mark.parametrize("d", SOME_HEADS)
@apart
def test_cross_attention_on_hopper(d):
    compiled = check(aot.cross_attention_launch(d, torch.float16, 90), 90)
    # of a tile of queries past one prompt
    assert min(loop.barriers for loop in compiled.loops) <= 10
    assert compiled.ctas >= 2


@pytest.mark.parametrize("capability", (80, 90))
@apart
def test_norm_reads_and_writes_whole_vectors(capability):
    moments, merge, apply = (check(x, capability) for x in aot.norm_launches(320, torch.float16, capability))
    for compiled in (moments, apply):
        assert compiled.ctas >= 4 and "LDG.E.128" in compiled.assembly
    assert "STG.E.128" in apply.assembly and merge.registers <= 64


@pytest.mark.slow
@pytest.mark.parametrize("capability", NVIDIA)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("d", HEADS)
@apart
def test_every_gpu(capability, dtype, d):
    for options in ({"fused": False}, {}, {"key_mask": True}, {"tokens": 1000}, {"fused": False, "key_mask": True}):
        check(aot.self_attention_launch(d, dtype, capability, **options), capability)
    for options in ({"fused": False}, {"edit": False}, {}, {"mapped": True}, {"fused": False, "mapped": True}):
        check(aot.cross_attention_launch(d, dtype, capability, **options), capability)
    for channels in (320, 960, 2560):
        for launch in aot.norm_launches(channels, dtype, capability):
            check(launch, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("d", HEADS)
@apart
def test_float32(capability, d):
    for options in ({}, {"fused": False}, {"key_mask": True}, {"tokens": 1000}):
        check(aot.self_attention_launch(d, torch.float32, capability, **options), capability)
    check(aot.cross_attention_launch(d, torch.float32, capability), capability)


@pytest.mark.parametrize(("d", "most"), [(40, 3120), (80, 4100)])
@apart
def test_float32_by_tensor_cores_on_hopper(d, most):
    """Three products of TF32; fused multiply-adds took 9456 cycles at D = 40."""
    launch = aot.self_attention_launch(d, torch.float32, 90)
    compiled = check(launch, 90)
    assert aot.issue_cycles(launch, compiled) <= most and any("x8" in name for name in compiled.matrix)


@pytest.mark.slow
@pytest.mark.parametrize("d", HEADS)
@apart
def test_amd(d):
    for make in (aot.self_attention_launch, aot.cross_attention_launch):
        assert "v_mfma_f32" in aot.compile_for_amd(make(d, torch.float16, 80))


def test_loops_are_read():
    """A wait that branches back across the loop, from behind it, is no loop of its own."""
    lines = (".L_x_1:", "MUFU.EX2 R1, R2", "HGMMA.64x64x16.F32 R24", ".L_x_2:", "WARPGROUP.ARRIVE",
             "BAR.SYNC.DEFER 0x0", "@P0 BRA `(.L_x_1)", "FADD R1", "@!P1 BRA `(.L_x_2)")  # fmt: skip
    text = "\n".join(x if x.startswith(".L") else f"/*{16 * i:04x}*/ {x}" for i, x in enumerate(lines))
    assert aot.loops_of(text) == (aot.Loop(5, 1, 1, 1),)


@apart
def test_what_is_checked_can_fail():
    """Tiles that are too large for the registers spill; without specialised warps large tiles have serial products."""
    launch = aot.self_attention_launch(160, torch.float16, 80)
    large = replace(launch, arguments=launch.arguments | {"BLOCK_Q": 128, "BLOCK_K": 64})
    assert aot.compile_launch(large, 80).spills > 0


@pytest.mark.slow
@apart
def test_few_binaries_serve_a_clip():
    """Integers that change from layer to layer do not make versions: a D has one plain and one fused binary."""
    for n, more in ((1024, 576), (1024, 3136)):
        one, other = (aot.self_attention_launch(80, torch.float16, 90, tokens=tokens) for tokens in (n, more))
        first, second = (aot.build(x, aot.GPUTarget("cuda", 90, 32)) for x in (one, other))
        assert first.hash == second.hash
