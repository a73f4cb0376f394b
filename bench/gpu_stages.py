"""What do the stages of `bench.gpu` measure, and what follows from them?"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_run import Row, Run

# what is expected of an H100 at 512 x 512, 8 frames, fp16, written before any run: (stage, row) -> ms, or GB
PREDICTIONS = {
    (3, "D40 N4096", "plain, this (table)"): 0.95,
    (3, "D40 N4096", "plain, this (table, not specialised)"): 1.05,
    (3, "D40 N4096", "plain, CUDNN_ATTENTION"): 1.1,
    (3, "D40 N4096", "plain, FLASH_ATTENTION"): 2.0,
    (3, "D80 N1024", "fused, this (table)"): 0.13,
    (3, "D80 N1024", "fused, two CUDNN_ATTENTION + blend"): 0.24,
    (3, "D80 N1024", "fused, rows sorted, varlen"): 0.2,
    (3, "D40 N4096", "cross, this"): 0.03,
    (3, "D40 N4096", "cross, SDPA"): 0.06,
    (4, "norm 64x64 C320", "this"): 0.045,
    (4, "norm 64x64 C320", "torch"): 0.2,
    (5, "512, 8 frames", "inversion, recompute"): 23.0,
    (5, "512, 8 frames", "edit, memory"): 45.0,
    (5, "512, 8 frames", "edit, graph"): 42.0,
    (5, "512, 8 frames", "edit, recompute"): 60.0,
    (5, "512, 8 frames", "edit, memory, torch kernels"): 75.0,
    (5, "512, 8 frames", "forward, float32"): 140.0,
    (5, "512, 8 frames", "peak GB above weights"): 8.0,
    (5, "256, 8 frames", "edit, memory"): 18.0,
    (5, "256, 8 frames", "edit, graph"): 11.0,
}


def card(run: Run) -> list[Row]:
    """Stage 0."""
    import triton

    n, dtype = (2**16, torch.float32) if run.small else (2**30, torch.float16)
    side = 64 if run.small else 8192
    x = torch.randn(n, device=run.device).to(dtype)
    y, a = torch.empty_like(x), torch.randn(side, side, device=run.device).to(dtype)
    small = x[: 2**14] if run.small else x[: 2**26]
    rows: list[Row] = [
        {"what": "device", "value": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"},
        {"what": "versions", "value": f"python {sys.version.split()[0]}, torch {torch.__version__}, "
                                      f"triton {triton.__version__}"},
        {"what": "copy GB/s", "value": 2 * x.nbytes / 1e6 / run.clock(lambda: y.copy_(x))},
        {"what": "product TFLOP/s", "value": 2 * side**3 / 1e9 / run.clock(lambda: a @ a)},
        {"what": "exp2 G/s", "value": small.numel() / 1e6 / run.clock(lambda: torch.exp2(small))},
    ]  # fmt: skip
    if run.device.type == "cuda":
        query = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,driver_version"
        with contextlib.suppress(OSError):
            asked = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                                   capture_output=True, text=True)  # fmt: skip
            rows.append({"what": query, "value": asked.stdout.strip()})
    return rows


def compile_one(task: tuple[str, tuple, int]) -> Row:
    """In a process of its own: compile a launch into Triton's cache."""
    os.environ.pop("TRITON_INTERPRET", None)
    from bench import aot_binaries as aot

    make, arguments, capability = task
    row: Row = {"binary": f"{make} {arguments}".replace("torch.", "")}
    launches = getattr(aot, make)(*arguments)
    for launch in launches if isinstance(launches, list) else [launches]:
        try:
            compiled = aot.compile_launch(launch, capability)
            row |= {"registers": compiled.registers, "spills": compiled.spills, "CTAs": compiled.ctas}
        except Exception as reason:  # whatever a compiler may raise
            row["cannot"] = str(reason).splitlines()[0][:120]
    return row


def compile_all(run: Run) -> list[Row]:
    """Stage 1."""
    from fz.kernels.triton_tiles import capability_of

    capability = capability_of(run.device)
    tasks = []
    for dtype in (torch.float16,) if run.small else (torch.float16, torch.bfloat16, torch.float32):
        for d in (40,) if run.small else (40, 80, 160):
            for fused in (True,) if run.small else (True, False):
                tasks.append(("self_attention_launch", (d, dtype, capability, fused), capability))
                tasks.append(("cross_attention_launch", (d, dtype, capability, fused), capability))
        tasks.append(("norm_launches", (320, dtype, capability), capability))
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        with ProcessPoolExecutor(1 if run.small else 12, multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(compile_one, tasks))
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def check(run: Run) -> list[Row]:
    """Stage 2: and, where it is installed, one size under compute-sanitizer."""
    from bench import gpu_kernels
    from bench.gpu_steps import MEMCHECK, RACECHECK, watched

    rows = gpu_kernels.check(run.device, run.small, run.until(2))
    for options in (MEMCHECK,) if run.small else (MEMCHECK, RACECHECK):
        if not run.late(2):
            rows += watched(run, "compute-sanitizer", options, 30)
    return rows


def attention(run: Run) -> list[Row]:
    """Stage 3: with the host's time and without."""
    from bench import gpu_kernels

    if run.device.type != "cuda":
        return gpu_kernels.attention(run.device, run.small, run.until(3), run.clock)
    timed = gpu_kernels.attention(run.device, run.small, run.until(3), run.clock)
    replayed = gpu_kernels.attention(run.device, run.small, run.until(3), run.replayed)
    # their difference is the host's time
    return [row | {"with host ms": other.get("ms")} for row, other in zip(replayed, timed, strict=True)]


def layers(run: Run) -> list[Row]:
    """Stage 4: GB/s or TFLOP/s of norms, GEGLU, linear layers and convolutions of each level."""
    from fz.kernels import torch_ops, triton_ops

    frames = 2 if run.small else 16
    dtype = torch.float32 if run.small else torch.float16
    rows: list[Row] = []
    for side, c in ((4, 32),) if run.small else ((64, 320), (32, 640), (16, 1280), (8, 1280)):
        x = torch.randn(frames, c, side, side, device=run.device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = torch.ones(c, device=run.device, dtype=dtype), torch.zeros(c, device=run.device, dtype=dtype)
        for name, ops in (("this", triton_ops), ("torch", torch_ops)):
            ms = run.clock(lambda o=ops, a=(x, frames // 2, 8, weight, bias, 1e-5): o.group_norm(*a, silu=True))
            rows.append({"site": f"norm {side}x{side} C{c}", "way": name, "ms": ms, "GB/s": 3 * x.nbytes / 1e6 / ms})
        tokens = x.permute(0, 2, 3, 1)
        w = torch.randn(8 * c, c, device=run.device).to(dtype)
        kernel = torch.randn(c, c, 3, 3, device=run.device).to(dtype).contiguous(memory_format=torch.channels_last)

        def geglu(t: Tensor = tokens, w: Tensor = w) -> Tensor:
            value, gate = F.linear(t, w).chunk(2, -1)
            return value * F.gelu(gate)

        products = {"linear": (lambda t=tokens, w=w, c=c: F.linear(t, w[:c]), c * c), "GEGLU": (geglu, 8 * c * c),
                    "conv 3x3": (lambda x=x, k=kernel: F.conv2d(x, k, padding=1), 9 * c * c)}  # fmt: skip
        for name, (way, each) in products.items():
            ms = run.clock(way)
            tflops = 2 * frames * side**2 * each / 1e9 / ms
            rows.append({"site": f"{name} {side}x{side} C{c}", "way": "torch", "ms": ms, "TFLOP/s": tflops})
        ms = run.clock(lambda t=tokens, w=weight, b=bias: F.layer_norm(t + t, t.shape[-1:], w, b))
        rows.append({"site": f"residual, LayerNorm {side}x{side} C{c}", "way": "torch", "ms": ms})
    return rows


def whole_steps(run: Run) -> list[Row]:
    """Stage 5."""
    from bench import gpu_steps

    return gpu_steps.whole_steps(run)


def profile(run: Run) -> list[Row]:
    """Stage 6."""
    from bench import gpu_steps

    return gpu_steps.profile(run)


STAGES: tuple[Callable[[Run], list[Row]], ...] = (card, compile_all, check, attention, layers, whole_steps, profile)


def predicted(stage: int, rows: list[Row]) -> None:
    """Each prediction beside its measurement."""
    for row in rows:
        expected = PREDICTIONS.get((stage, row.get("site"), row.get("way")))
        if expected is not None:
            row["predicted"] = expected


def decisions(rows: dict[int, list[Row]]) -> list[str]:
    """What the measurements decide, by rules that were written before them."""
    timed = [row for stage in rows.values() for row in stage if "site" in row and "ms" in row]
    ms = {(row["site"], row["way"]): row["ms"] for row in timed}

    def fastest(site: str, among: Callable[[str], bool]) -> tuple[float, str]:
        found = ((t, way) for (s, way), t in ms.items() if s == site and among(way))
        return min(found, default=(float("inf"), "nothing"))

    lines = []
    for site in dict.fromkeys(s for s, way in ms if way == "plain, this (table)"):
        for kind in ("plain", "fused"):
            ours, tiles = fastest(site, lambda way, k=kind: way.startswith(f"{k}, this"))
            theirs, rival = fastest(site, lambda way, k=kind: way.startswith(f"{k}, ") and "this" not in way)
            lines.append(f"{site} {kind}: {tiles}, {theirs / ours:.2f} x as fast as {rival}")
            if kind == "plain" and ours > 1.1 * theirs:
                lines.append(f"{site} plain: take {rival}")
        if ms.get((site, "cross, this"), 0) > ms.get((site, "cross, SDPA"), float("inf")):
            lines.append(f"{site} cross, plain: take SDPA")
    saved = sum(ms.get((s, "torch"), t) - t for (s, way), t in ms.items() if s.startswith("norm") and way == "this")
    lines.append(f"the norm kernel saves {saved:.3f} ms in one norm of each level; from 2 ms a step on it stays")
    for (site, way), t in ms.items():
        if way == "edit, graph":
            eager, share = ms[site, "edit, in a run"], 0.05 if site.startswith("512") else 0.1
            lines.append(f"{site}: graphs {'stay' if t < (1 - share) * eager else 'go'}, {eager / t:.2f} x as fast")
    return lines


def show(rows: list[Row]) -> None:
    for row in rows:
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  " + "; ".join(shown), flush=True)


@torch.no_grad()
def run_stages(device: torch.device, dry: bool, seconds: float, out: Path, only: int | None = None) -> int:
    """All stages, or one; returns the exit code: 1 where one is wrong or failed."""
    out.mkdir(parents=True, exist_ok=True)
    # the interpreter is never late
    run = Run(device, dry, time.monotonic(), seconds * (1000 if dry else 1), out)
    if device.type == "cuda":
        # a kernel that never ends would keep the card
        faulthandler.dump_traceback_later(seconds + 60, exit=True)
    failed, measured = 0, {}
    for number, stage in enumerate(STAGES):
        if only not in (None, number):
            continue
        began = time.monotonic()
        if only is None and began > run.until(number):
            print(f"stage {number} {stage.__name__}: skipped, late", flush=True)
            continue
        try:
            rows = stage(run)
        except Exception as reason:  # the next stage is still worth its seconds
            rows, failed = [{"failed": f"{type(reason).__name__}: {reason}"[:300]}], failed + 1
        measured[number] = rows
        predicted(number, rows)
        print(f"stage {number} {stage.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        show(rows)
        (run.out / f"{number}-{stage.__name__}.json").write_text(json.dumps(rows, indent=1, default=str))
        wrong = [row["case"] for row in rows if row.get("right") is False]
        if wrong:
            print(f"{len(wrong)} wrong, first {wrong[0]}: nothing more is timed until they are mended", flush=True)
            return 1
    print("\n".join(decisions(measured)), flush=True)
    faulthandler.cancel_dump_traceback_later()
    return 1 if failed else 0
