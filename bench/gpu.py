"""The one run on a GPU that settles what could only be estimated: `python -m bench.gpu --seconds 460 [--only STAGE]`.

Stages: 0 the card and its ceilings; 1 every binary compiled; 2 right against float64 (a wrong kernel is not timed);
3 attention alone, with its rivals; 4 norms, products and convolutions against the ceilings; 5 whole steps; 6 a profile.
Each prints, leaves a JSON file in --out, and is skipped when it is late. Needs torch, triton and numpy only. `--dry`
does all of it in small on a CPU, its kernels interpreted, so that it fails there and not on the day.
"""

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Row = dict[str, object]
# seconds from the start by which a stage should be done
ENDS = {0: 10, 1: 60, 2: 130, 3: 220, 4: 250, 5: 370, 6: 400}
# what is expected of an H100 at 512 x 512, 8 frames, fp16, written before any run: (stage, row) -> ms, or GB
PREDICTIONS = {
    (3, "D40 N4096", "plain, this (table)"): 0.95,
    (3, "D40 N4096", "plain, CUDNN_ATTENTION"): 1.1,
    (3, "D80 N1024", "fused, this (table)"): 0.13,
    (3, "D40 N4096", "cross, this"): 0.03,
    (4, "norm 64x64 C320", "this"): 0.045,
    (4, "norm 64x64 C320", "torch"): 0.2,
    (5, "512, 8 frames", "inversion, recompute"): 23.0,
    (5, "512, 8 frames", "edit, memory"): 45.0,
    (5, "512, 8 frames", "peak GB above weights"): 8.0,
}


@dataclass(frozen=True)
class Run:
    """device: what is measured; small: sizes for a dry run; start, seconds: of the clock; out: where JSON goes."""

    device: torch.device
    small: bool
    start: float
    seconds: float
    out: Path

    def until(self, stage: int) -> float:
        """When a stage should be done, in proportion to the whole."""
        return self.start + ENDS[stage] / ENDS[6] * self.seconds

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clock(self, f: Callable[[], object], repeat: int = 7) -> float:
        """Milliseconds of a call: the median of rounds, on a GPU by its own clock."""
        f()
        self.sync()
        times = []
        for _ in range(1 if self.small else repeat):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                f()
                end.record()
                self.sync()
                times.append(begin.elapsed_time(end))
            else:
                begin = time.perf_counter()
                f()
                times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    def replayed(self, f: Callable[[], object]) -> float:
        """Milliseconds of a call without its host's: of 10 in a CUDA graph; without CUDA as `clock`."""
        if self.device.type != "cuda":
            return self.clock(f)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            f()
        self.sync()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                f()
        return self.clock(graph.replay) / 10


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
    from bench import aot

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
    """Stage 2."""
    from bench import gpu_attention

    return gpu_attention.check(run.device, run.small, run.until(2))


def attention(run: Run) -> list[Row]:
    """Stage 3: with the host's time and without."""
    from bench import gpu_attention

    if run.device.type != "cuda":
        return gpu_attention.attention(run.device, run.small, run.until(3), run.clock)
    timed = gpu_attention.attention(run.device, run.small, run.until(3), run.clock)
    replayed = gpu_attention.attention(run.device, run.small, run.until(3), run.replayed)
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


def steps_on(run: Run, size: int, frames: int):
    """Steps of `bench.edit` on the device, in half precision there."""
    from bench.edit import SMALL, Steps
    from fz.model.unet import UNet, UNetConfig

    torch.manual_seed(0)
    with torch.device(run.device):
        unet = UNet(SMALL if run.small else UNetConfig()).eval()
    unet = unet.to(torch.float32 if run.small else torch.float16).to(memory_format=torch.channels_last)
    steps = Steps(unet, frames, size)
    for name in ("source_prompt", "z", "maps"):
        setattr(steps, name, getattr(steps, name).to(run.device))
    steps.guidance = type(steps.guidance)(steps.negative.to(run.device))
    steps.task = type(steps.task)(steps.target.to(run.device), steps.task.fusion, steps.task.region)
    return steps


def captured(run: Run, steps) -> float | str:
    """Milliseconds of a forward pass replayed from a CUDA graph, or why there is none."""
    if run.device.type != "cuda":
        return "no CUDA here"
    steps.forward()
    run.sync()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps.forward()
        return run.clock(graph.replay)
    except RuntimeError as reason:
        return str(reason).splitlines()[0][:120]


def whole_steps(run: Run) -> list[Row]:
    """Stage 5."""
    from fz.attention import Keep

    plans = ((64, 2),) if run.small else ((512, 8), (256, 8), (512, 16), (256, 32))
    rows: list[Row] = []
    for size, frames in plans:
        if time.monotonic() > run.until(5):
            rows.append({"site": f"{size}, {frames} frames", "way": "all", "skipped": True})
            continue
        steps, site = steps_on(run, size, frames), f"{size}, {frames} frames"
        kept, nothing = steps.source(Keep(True, True)), steps.source(Keep())
        ways = {"forward": steps.forward, "inversion, recompute": steps.invert,
                "edit, memory": lambda s=steps, k=kept: s.edit(k),
                "edit, recompute": lambda s=steps, k=nothing: s.edit(k)}  # fmt: skip
        if run.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        rows += [{"site": site, "way": name, "ms": run.clock(way, 5)} for name, way in ways.items()]
        if run.device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
            rows.append({"site": site, "way": "peak GB above weights", "GB": peak})
            for name, way in ways.items():
                rows.append({"site": site, "way": f"{name}, synchronisations", "count": synchronisations(way)})
        rows.append({"site": site, "way": "forward, CUDA graph", "ms": captured(run, steps)})
        before_kernels = os.environ.get("FZ_KERNELS")
        os.environ["FZ_KERNELS"] = "torch"
        rows.append({"site": site, "way": "edit, memory, torch kernels", "ms": run.clock(ways["edit, memory"], 3)})
        os.environ.pop("FZ_KERNELS")
        if before_kernels:
            os.environ["FZ_KERNELS"] = before_kernels
    return rows


def synchronisations(way: Callable[[], object]) -> int:
    """How often a call waits for the GPU."""
    import warnings

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            way()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in found)


def profile(run: Run) -> list[Row]:
    """Stage 6: where the time of an edit step goes, by kernel."""
    from torch.profiler import ProfilerActivity

    from fz.attention import Keep

    steps = steps_on(run, *((64, 2) if run.small else (512, 8)))
    kept = steps.source(Keep(True, True))
    steps.edit(kept)
    cuda = run.device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        steps.edit(kept)
        run.sync()
    time_of = (lambda e: e.self_device_time_total) if cuda else (lambda e: e.self_cpu_time_total)
    events = sorted(found.key_averages(), key=time_of, reverse=True)
    return [{"kernel": e.key[:70], "calls": e.count, "ms": time_of(e) / 1e3} for e in events[:40]]


STAGES: tuple[Callable[[Run], list[Row]], ...] = (card, compile_all, check, attention, layers, whole_steps, profile)


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


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--only", type=int, choices=range(len(STAGES)), help="one stage")
    parser.add_argument("--dry", action="store_true", help="every stage in small on the CPU, kernels interpreted")
    parser.add_argument("--out", type=Path, default=Path("gpu-run"), help="folder of JSON files")
    given = parser.parse_args(argv)
    if given.dry and os.environ.get("TRITON_INTERPRET") != "1":
        # triton decides at its import whether it interprets
        words = sys.argv[1:] if argv is None else argv
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        return subprocess.run([sys.executable, "-m", "bench.gpu", *words], env=environment).returncode
    if not given.dry and not torch.cuda.is_available():
        print("bench.gpu: this PyTorch sees no GPU; --dry runs every stage in small on the CPU.", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if given.dry else "cuda")
    run = Run(device, given.dry, time.monotonic(), given.seconds, given.out)
    if device.type == "cuda":
        # a kernel that never ends would keep the card
        faulthandler.dump_traceback_later(given.seconds + 60, exit=True)
    failed = 0
    for number, stage in enumerate(STAGES):
        if given.only not in (None, number):
            continue
        began = time.monotonic()
        if given.only is None and began > run.until(number):
            print(f"stage {number} {stage.__name__}: skipped, late", flush=True)
            continue
        try:
            rows = stage(run)
        except Exception as reason:  # the next stage is still worth its seconds
            rows, failed = [{"failed": f"{type(reason).__name__}: {reason}"[:300]}], failed + 1
        predicted(number, rows)
        print(f"stage {number} {stage.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        show(rows)
        (run.out / f"{number}-{stage.__name__}.json").write_text(json.dumps(rows, indent=1, default=str))
        wrong = [row["case"] for row in rows if row.get("right") is False]
        if wrong:
            print(f"{len(wrong)} wrong, first {wrong[0]}: nothing is timed until they are mended", flush=True)
            return 1
    faulthandler.cancel_dump_traceback_later()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
