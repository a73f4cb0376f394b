"""Stages 5 and 6 of `bench.gpu`: what do whole steps take, in time and memory, and where does the time go?

Stable Diffusion v1.4's shapes with random weights. A step is timed alone, and as a run has it: one of several, whose
passes come again and are replayed as CUDA graphs. Replayed steps must be the others to the bit.
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.gpu_run import Row, Run, reason_of
from bench.steps import INDEX, SMALL, Steps, diffusers_unet, kernels
from fz.attention import Keep
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.fusion import Fusion
from fz.graphs import Graphs
from fz.masks import EditRegion
from fz.memory.kept import KeptInMemory
from fz.model.compiled import compile_layers
from fz.model.unet import UNet, UNetConfig
from fz.source import Source

WORDS = 77
LENGTH = 8  # steps of a run that is timed as a whole


def steps_on(run: Run, size: int, frames: int, dtype: torch.dtype = torch.float16) -> Steps:
    """`bench.steps.Steps` on the device; float32 in a dry run, whose CPU has no halves."""
    torch.manual_seed(0)
    with torch.device(run.device):
        unet = UNet(SMALL if run.small else UNetConfig()).eval()
    unet = unet.to(torch.float32 if run.small else dtype).to(memory_format=torch.channels_last)
    steps = Steps(unet, frames, size)
    for name in ("source_prompt", "target", "negative", "z", "maps"):
        setattr(steps, name, getattr(steps, name).to(run.device))
    steps.guidance = type(steps.guidance)(steps.negative)
    steps.task = type(steps.task)(steps.target, steps.task.fusion, steps.task.region)
    return steps


def a_run(run: Run, steps: Steps, unet: UNet | Graphs) -> tuple[dict[str, float], list[Tensor]]:
    """Milliseconds of a step of inversion and of editing in a run of several, and all latents."""
    length = 3 if run.small else LENGTH
    whole = steps.schedule
    schedule = Schedule(whole.timesteps[:length], whole.alpha_bars, whole.clean_alpha_bar)
    model, times, latents = Denoiser(unet, schedule, INDEX), [], []

    def look(k: int, z: Tensor) -> None:
        run.sync()
        times.append(time.perf_counter())
        latents.append(z)

    keep = Keep(True, True)
    source = Source(steps.source_prompt, {CLEAN: steps.z}, store=KeptInMemory(), keep=lambda k: keep)
    invert(model, source, look)
    source.maps = {t: steps.maps for t in schedule.timesteps}
    fusion, region = steps.task.fusion, steps.task.region
    fusion = Fusion(fusion.mapper, fusion.alpha, fusion.equalizer, torch.ones(length + 1, WORDS), (0, length))
    edit(model, source, Edit(steps.target, fusion, region), steps.guidance, look)

    def median(of: list[float]) -> float:
        # the first is set up, the second captured
        return 1e3 * statistics.median(b - a for a, b in zip(of[1:], of[2:], strict=False))

    return {"inversion": median(times[:length]), "edit": median(times[length:])}, latents


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what is measured, or with why not: what one way lacks is no other way's loss."""
    try:
        return row | measure()
    except torch.cuda.OutOfMemoryError:
        return row | {"cannot": "out of memory"}
    except Exception as reason:  # whatever a compiler or another library may raise
        return row | {"failed": reason_of(reason)}


def replayed(run: Run, steps: Steps, site: str) -> Iterator[Row]:
    """A run as it is and with its passes replayed, which must give the same bits."""
    said: list[str] = []
    eager, expected = a_run(run, steps, steps.unet)
    for name, ms in eager.items():
        yield {"site": site, "way": f"{name}, in a run", "ms": ms}
    if run.device.type != "cuda":
        yield {"site": site, "way": "graph", "cannot": "no CUDA here"}
        return
    graphs, got = a_run(run, steps, Graphs(steps.unet, said.append))
    if said:
        yield {"site": site, "way": "graph", "cannot": said[0]}
        return
    for name, ms in graphs.items():
        yield {"site": site, "way": f"{name}, graph", "ms": ms}
    yield {"case": f"{site}, a run replayed", "right": all(map(torch.equal, got, expected))}


def whole_steps(run: Run) -> Iterator[Row]:
    """Stage 5; what is compiled comes last, as it takes longest and fails most easily."""
    plans = ((64, 2),) if run.small else ((512, 8), (256, 8), (512, 16), (256, 32), (512, 32))
    for size, frames in plans:
        yield from survived(run, f"{size}, {frames} frames", lambda *a: steps_of(run, *a), size, frames)
    yield from survived(run, f"{plans[0][0]}, {plans[0][1]} frames", lambda *a: compiled(run, *a), *plans[0])


def survived(
    run: Run, site: str, measure: Callable[[int, int, str], Iterator[Row]], size: int, frames: int
) -> Iterator[Row]:
    """The rows of a site that there is time for; where one cannot be had at all, why."""
    if run.late(5):
        yield {"site": site, "way": "all", "skipped": True}
        return
    try:
        yield from measure(size, frames, site)
    except torch.cuda.OutOfMemoryError:
        yield {"site": site, "way": "the rest", "cannot": "out of memory"}
    except Exception as reason:  # the next site is still worth its seconds
        yield {"site": site, "way": "the rest", "failed": reason_of(reason)}
    if run.device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # an error of before that CUDA says again
            torch.cuda.empty_cache()


def steps_of(run: Run, size: int, frames: int, site: str) -> Iterator[Row]:
    """All ways of a size and length; at 512 x 512 and 8 frames those that are compared once, too."""
    steps = steps_on(run, size, frames)
    kept, nothing = steps.source(Keep(True, True)), steps.source(Keep())
    no_mask = Edit(steps.target, steps.task.fusion, EditRegion())
    ways: dict[str, Callable[[], object]] = {
        "forward": steps.forward,
        "inversion, recompute": steps.invert,
        "inversion, memory": lambda: steps.invert(Keep(True, True)),
        "edit, memory": lambda: steps.edit(kept),
        "edit, memory, no mask": lambda: edit(steps.model, kept, no_mask, steps.guidance),
        "edit, recompute": lambda: steps.edit(nothing),
    }
    cuda = run.device.type == "cuda"

    def timed(name: str, way: Callable[[], object], repeat: int = 7, by: str = "") -> Row:
        def ms() -> Row:
            with kernels(by) if by else contextlib.nullcontext():
                return {"ms": run.clock(way, repeat)}

        return attempt({"site": site, "way": name}, ms)

    if cuda:
        run.sync()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for name, way in ways.items():
        yield timed(name, way)
    if cuda:
        peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        yield {"site": site, "way": "peak GB above weights", "GB": peak}
        for name, way in ways.items():
            row = {"site": site, "way": f"{name}, synchronisations"}
            yield attempt(row, lambda w=way: {"count": synchronisations(w)})
    yield from replayed(run, steps, site)
    if not run.small and (size, frames) not in ((512, 8), (256, 8)):
        return
    yield timed("edit, memory, torch kernels", ways["edit, memory"], 3, "torch")
    if size < 512:
        yield timed("edit, memory, maps", ways["edit, memory"], 3, "reference")
    yield attempt({"site": site, "way": "forward, diffusers"}, lambda: diffusers_forward(run, steps))
    if size < 512 and not run.small or run.late(5):
        return

    def exact() -> Row:
        return {"ms": run.clock(steps_on(run, size, frames, torch.float32).forward, 3)}

    yield attempt({"site": site, "way": "forward, float32"}, exact)


def diffusers_forward(run: Run, steps: Steps) -> Row:
    """diffusers' model with the same weights on the same frames."""
    theirs = diffusers_unet(steps.unet)
    if theirs is None:
        return {"cannot": "diffusers is not installed"}
    dtype = steps.unet.conv_in.weight.dtype
    z = steps.z.to(dtype).contiguous(memory_format=torch.channels_last)
    text = steps.source_prompt.to(dtype).expand(len(z), -1, -1)
    return {"ms": run.clock(lambda: theirs(z, steps.t, text))}


def compiled(run: Run, size: int, frames: int, site: str) -> Iterator[Row]:
    """An edit step whose layers torch.compile took."""
    steps = steps_on(run, size, frames)
    kept = steps.source(Keep(True, True))

    def ms() -> Row:
        compile_layers(steps.unet.modules(), "inductor")
        return {"ms": run.clock(lambda: steps.edit(kept), 3)}

    yield attempt({"site": site, "way": "edit, memory, compiled"}, ms)


def synchronisations(way: Callable[[], object]) -> int:
    """How often a call waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            way()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in found)


def profile(run: Run) -> Iterator[Row]:
    """Stage 6: where the time of an edit step goes, by kernel; and what ncu says of self-attention, where it is."""
    from torch.profiler import ProfilerActivity

    steps = steps_on(run, *((64, 2) if run.small else (512, 8)))
    kept = steps.source(Keep(True, True))
    steps.edit(kept)
    cuda = run.device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        steps.edit(kept)
        run.sync()
    time_of = (lambda e: e.self_device_time_total) if cuda else (lambda e: e.self_cpu_time_total)
    events = sorted(found.key_averages(), key=time_of, reverse=True)
    for e in events[:40]:
        yield {"kernel": e.key[:70], "calls": e.count, "ms": time_of(e) / 1e3}
    yield from watched(run, "ncu", NCU, 60)


NCU = ("--clock-control", "none", "--kernel-name", "regex:attention_kernel", "--launch-count", "4",
       "--section", "SpeedOfLight", "--section", "Occupancy", "--section", "WarpStateStats")  # fmt: skip
FOUND = 9  # the exit code of compute-sanitizer where it found something
MEMCHECK = ("--tool", "memcheck", "--error-exitcode", str(FOUND))
RACECHECK = ("--tool", "racecheck", "--error-exitcode", str(FOUND))


def watched(run: Run, tool: str, options: tuple[str, ...], seconds: int) -> list[Row]:
    """All kernels in small, in a process of their own that a tool of CUDA's watches; without the tool in a dry run."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")
    if path is None and run.device.type == "cuda":
        return [{"tool": tool, "cannot": "not installed"}]
    command = [*([path, *options] if path and run.device.type == "cuda" else []), sys.executable, "-m"]
    try:
        command.append("bench.gpu_attention")
        limit = 20 * seconds if run.small else seconds
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return [{"tool": tool, "cannot": f"did not end in {seconds} s"}]
    said = (done.stdout + done.stderr).strip().splitlines()
    row: Row = {"tool": f"{tool} {' '.join(options[:2])}", "code": done.returncode, "said": "\n".join(said[-30:])}
    # a tool that may not watch says so by its code, and a process that ends before its checks says nothing of them
    checked = [line for line in said if "cases, wrong: " in line]
    wrong = any("wrong: none" not in line for line in checked) or done.returncode == FOUND
    return [row | {"case": f"under {tool}", "right": False if wrong else True if checked else None}]
