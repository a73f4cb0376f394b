"""What do the stages of `bench.gpu` measure? What follows from it is in `bench.gpu_decisions`."""

import contextlib
import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_decisions import decisions
from bench.gpu_record import CHECK, Record
from bench.gpu_run import HOST, Row, Run
from fz.errors import FzError
from fz.memory.workers import workers

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
        with workers(1 if run.small else 12) as pool:
            return list(pool.map(compile_one, tasks))
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def check(run: Run) -> Iterator[Row]:
    """Stage 2: and, where it is installed, one size under compute-sanitizer."""
    from bench import gpu_kernels
    from bench.gpu_steps import MEMCHECK, RACECHECK, watched

    yield from gpu_kernels.check(run.device, run.small, run.until(2))
    for options in (MEMCHECK,) if run.small else (MEMCHECK, RACECHECK):
        if not run.late(2):
            yield from watched(run, "compute-sanitizer", options, 30)


def attention(run: Run) -> Iterator[Row]:
    """Stage 3: with the host's time and without, half of the seconds each."""
    from bench import gpu_kernels

    if run.device.type != "cuda":
        yield from gpu_kernels.attention(run.device, run.small, run.until(3), run.clock)
        return
    middle = (time.monotonic() + run.until(3)) / 2
    timed = []
    for row in gpu_kernels.attention(run.device, run.small, middle, run.clock):
        timed.append({HOST if name == "ms" else name: value for name, value in row.items()})
        yield timed[-1]
    # each into the row that was given already, so that a failure costs the rest only
    for row, other in zip(timed, gpu_kernels.attention(run.device, run.small, run.until(3), run.replayed), strict=True):
        row.pop("skipped", None)
        row |= other


def layers(run: Run) -> Iterator[Row]:
    """Stage 4: GB/s or TFLOP/s of norms, GEGLU, linear layers and convolutions of each level."""
    from fz.kernels import torch_ops, triton_ops

    frames = 2 if run.small else 16
    dtype = torch.float32 if run.small else torch.float16
    for side, c in ((4, 32),) if run.small else ((64, 320), (32, 640), (16, 1280), (8, 1280)):
        x = torch.randn(frames, c, side, side, device=run.device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = torch.ones(c, device=run.device, dtype=dtype), torch.zeros(c, device=run.device, dtype=dtype)
        for name, ops in (("this", triton_ops), ("torch", torch_ops)):
            ms = run.clock(lambda o=ops, a=(x, frames // 2, 8, weight, bias, 1e-5): o.group_norm(*a, silu=True))
            yield {"site": f"norm {side}x{side} C{c}", "way": name, "ms": ms, "GB/s": 3 * x.nbytes / 1e6 / ms}
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
            yield {"site": f"{name} {side}x{side} C{c}", "way": "torch", "ms": ms, "TFLOP/s": tflops}
        ms = run.clock(lambda t=tokens, w=weight, b=bias: F.layer_norm(t + t, t.shape[-1:], w, b))
        yield {"site": f"residual, LayerNorm {side}x{side} C{c}", "way": "torch", "ms": ms}


def whole_steps(run: Run) -> Iterable[Row]:
    """Stage 5."""
    from bench import gpu_steps

    return gpu_steps.whole_steps(run)


def profile(run: Run) -> Iterable[Row]:
    """Stage 6."""
    from bench import gpu_steps

    return gpu_steps.profile(run)


# each gives its rows as it has them: what fails costs no row that was measured before
STAGES: tuple[Callable[[Run], Iterable[Row]], ...] = (
    card,
    compile_all,
    check,
    attention,
    layers,
    whole_steps,
    profile,
)


def predicted(stage: int, rows: list[Row]) -> None:
    """Each prediction beside its measurement."""
    for row in rows:
        expected = PREDICTIONS.get((stage, row.get("site"), row.get("way")))
        if expected is not None:
            row["predicted"] = expected


def show(rows: list[Row]) -> None:
    for row in rows:
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  " + "; ".join(shown), flush=True)


def rows_of(run: Run, number: int, record: Record) -> list[Row]:
    """A stage's rows, each written as soon as it is there; an error is the last one."""
    stage, rows = STAGES[number], []
    name = f"{number}-{stage.__name__}"
    try:
        for row in stage(run):
            rows.append(row)
            predicted(number, rows[-1:])
            record.write(name, rows, done=False)
    except Exception as reason:  # the next stage is still worth its seconds
        rows.append({"failed": f"{type(reason).__name__}: {reason}"[:300]})
    predicted(number, rows)
    record.write(name, rows, done=True)
    return rows


@torch.no_grad()
def run_stages(device: torch.device, dry: bool, seconds: float, out: Path, only: int | None = None) -> int:
    """All stages, or one; returns the exit code: 1 where one is wrong, failed, or may not be timed."""
    record = Record.of(out, device, dry)
    # the interpreter is never late
    run = Run(device, dry, time.monotonic(), seconds * (1000 if dry else 1), only is not None)
    if only is not None and only > CHECK and (why := record.unproven()):
        raise FzError(f"only: stage {only} times kernels that are right; {why}. Run --only {CHECK} first.")
    if device.type == "cuda":
        # a kernel that never ends would keep the card
        faulthandler.dump_traceback_later(seconds + 60, exit=True)
    failed, measured = False, {}
    for number, stage in enumerate(STAGES):
        if only not in (None, number):
            continue
        began = time.monotonic()
        if number > CHECK and (why := record.unproven()):
            print(f"stage {number} {stage.__name__}: not timed, {why}", flush=True)
            failed = True
            continue
        if only is None and began > run.until(number):
            print(f"stage {number} {stage.__name__}: skipped, late", flush=True)
            continue
        rows = measured[number] = rows_of(run, number, record)
        print(f"stage {number} {stage.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        show(rows)
        failed |= any("failed" in row for row in rows)
        wrong = [row["case"] for row in rows if row.get("right") is False]
        if wrong:
            print(f"{len(wrong)} wrong, first {wrong[0]}: nothing more is timed until they are mended", flush=True)
            return 1
    print("\n".join(decisions(measured)), flush=True)
    faulthandler.cancel_dump_traceback_later()
    return 1 if failed else 0
