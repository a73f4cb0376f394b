"""The Triton kernels compiled ahead of time for GPUs that are not here: no spill, shared memory that the chip has, few matrix instructions.

Compiled as the launchers would have them compiled there; registers and instructions are read from the machine code (`bench/aot.py`).
"""

import functools
import math
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("triton")
pytest.skip("bench.aot does not describe the kernels of triton_tiles.py yet", allow_module_level=True)

from bench import aot  # noqa: E402
from fz.kernels import triton_cross, triton_self  # noqa: E402

HALF = (torch.float16, torch.bfloat16)
HEADS = (40, 80, 160)
WORDS = 77
# bytes that could not be had away: cross-attention with a map, by D and compute capability
SPILLS = {(80, 86): 8, (80, 89): 8, (160, 86): 88, (160, 89): 88}


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


def macs(compiled: aot.Compiled, warps: int) -> int:
    """Multiplications of a tile's matrix instructions: HMMA is a warp's, HGMMA a group's of four warps."""
    total = 0
    for name, count in compiled.matrix.items():
        group = 4 if name.startswith("HGMMA") else 1
        shape = re.search(r"(\d+)x(\d+)x(\d+)", name)
        total += count * (math.prod(map(int, shape.groups())) if shape else 16 * 8 * 16) * warps // group
    return total


def check(case: tuple, capability: int, least: int, spills: int = 0) -> None:
    compiled = aot.compile_kernel(*case)
    assert compiled.spills <= spills
    assert compiled.shared <= aot.SHARED[capability]
    if capability < 100:
        # padding D to a power of two would be 1.6 times
        assert least <= macs(compiled, case[4]) <= 1.25 * least
    if capability == 90:
        assert any(name.startswith("HGMMA") for name in compiled.matrix), compiled.matrix


@pytest.mark.parametrize(
    ("capability", "dtype"), [(80, torch.float16), (90, torch.float16), (90, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("d", HEADS)
@apart
def test_self_attention(capability, dtype, d):
    config = triton_self.configure(d, dtype, capability)
    check(aot.self_attention_case(d, dtype, capability), capability, 2 * config.block_q * config.block_k * d)


@pytest.mark.parametrize("capability", (80, 90))
@apart
def test_cross_attention(capability):
    config = triton_cross.configure(torch.float16)
    # the edit's and the source's attention, each a product with keys and one with values
    check(
        aot.cross_attention_case(40, torch.float16, capability, mapped=True),
        capability,
        4 * config.block_q * WORDS * 40,
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability", aot.NVIDIA)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("d", HEADS)
@apart
def test_every_gpu(capability, dtype, d):
    config = triton_self.configure(d, dtype, capability)
    for key_mask in (False, True):
        check(
            aot.self_attention_case(d, dtype, capability, key_mask=key_mask),
            capability,
            2 * config.block_q * config.block_k * d,
        )
    config = triton_cross.configure(dtype)
    for mapped in (False, True):
        spills = SPILLS.get((d, capability), 0) if mapped else 0
        check(
            aot.cross_attention_case(d, dtype, capability, mapped=mapped),
            capability,
            4 * config.block_q * WORDS * d,
            spills,
        )


@pytest.mark.slow
@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("d", HEADS)
@apart
def test_float32(capability, d):
    for case in (
        aot.self_attention_case(d, torch.float32, capability),
        aot.cross_attention_case(d, torch.float32, capability),
    ):
        compiled = aot.compile_kernel(*case)
        assert compiled.spills == 0 and compiled.shared <= aot.SHARED[capability]


@pytest.mark.slow
@pytest.mark.parametrize("d", HEADS)
@apart
def test_amd(d):
    for case in (aot.self_attention_case(d, torch.float16, 80), aot.cross_attention_case(d, torch.float16, 80)):
        assembly = aot.compile_for_amd(*case)
        assert "v_mfma_f32" in assembly


@apart
def test_a_spill_is_seen():
    """Tiles that are too large for the registers: the check above can fail."""
    case = list(aot.self_attention_case(160, torch.float16, 80))
    case[2] = {**case[2], "BLOCK_Q": 128, "BLOCK_K": 64}
    assert aot.compile_kernel(*case[:4], 4, 1).spills > 0
