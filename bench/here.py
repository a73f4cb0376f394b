"""What is measured here, and on what? Seconds of a call, the machine, the commit, its best matrix product now."""

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fz.kernels.gemm import Packed

CPU = torch.device("cpu")


def seconds(f: Callable[[], object], repeat: int = 1) -> float:
    """Seconds of one call; with one thread the process's own: what others take of a shared core is not counted."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeat):
        f()
    return (clock() - start) / repeat


def gemm_peak(dtype: torch.dtype = torch.float32, device: torch.device = CPU, side: int = 1024) -> float:
    """Operations a second of the best matrix product that this machine does now, in this dtype."""
    if device.type == "cuda":
        from triton.testing import do_bench

        x = torch.randn(8192, 8192, device=device, dtype=dtype)
        return 2 * 8192**3 / (1e-3 * do_bench(lambda: x @ x))
    x = torch.randn(side, side).to(dtype)
    ways = [lambda: x @ x]
    if dtype == torch.float32:
        with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):
            packed = Packed(x, rows=len(x))
            ways.append(lambda: packed(x))
    return max(2 * side**3 / min(seconds(way) for _ in range(8)) for way in ways)


def commit() -> str:
    """The commit that is measured, '+' where files differ from it, 'unknown' outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # what changes no figure, as documents and tests, is not asked about
        changed = git("status", "--porcelain", "-uno", ".", "../fz", "../kernels", "../weights")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
