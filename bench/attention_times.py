"""How fast is fused attention at Stable Diffusion v1.4's sites, by every way?

Nothing is timed before everything is right. Times are medians of interleaved rounds in one run (on a GPU
triton.testing.do_bench); GFLOP/s count what the result needs, one attention a row, whatever a way computes; the share
is of this machine's own GEMM peak, measured in the same run.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.attention_ways import CrossCase, SelfCase, Way, cross_case, cross_ways, self_case, self_ways
from bench.here import commit, gemm_peak, machine, seconds
from bench.sites import BenchSite, sites
from bench.tables import ATTENTION, append
from bench.temporaries import temporaries
from fz import kernels
from fz.errors import FzError
from fz.kernels import reference
from fz.memory.machine import pick_device

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
UNMIXED = ("this, unmixed", "one plain attention, keys laid out")
# tokens of a frame where versions are first compared with float64: with a tail, whatever the tile
CHECKED_TOKENS = 50
# sites whose maps have at most so many numbers are compared as they are timed, too: the size decides which code runs
CHECKED_MAP = 2**28


@dataclass(frozen=True)
class Timing:
    """One way at one site. p20, p50, p80: seconds; largest: bytes of an allocation; peak: most bytes at once."""

    site: BenchSite
    way: str
    p20: float
    p50: float
    p80: float
    largest: int
    peak: int
    rounds: tuple[float, ...] = ()

    def rate(self) -> float:
        """Operations a second that the result needs; cross-attention sums two."""
        return self.site.operations * (2 if self.site.kind == "cross" else 1) / self.p50


def error(got: Tensor, exact: Tensor) -> float:
    """Relative, of the whole; not finite where anything is not."""
    return ((got.double() - exact).norm() / exact.norm()).item()


def exact_self(x: SelfCase, mixed: bool = True) -> Tensor:
    """What the reference makes of the operands in float64."""
    x = x.map(Tensor.double)
    mask = x.mask if mixed else None
    return reference.self_attention(x.q[None], x.k[None], x.v[None], x.frames, q_src=x.q_src, k_src=x.k_src, mask=mask)[
        0
    ]


def exact_cross(x: CrossCase) -> Tensor:
    x = x.map(Tensor.double)
    v_src = torch.einsum("ij,jhd->ihd", x.source_weights, x.v)
    v = x.v * x.edit_weights[:, None, None]
    return reference.cross_attention(x.q[None], x.k[None], v[None], q_src=x.q_src, k_src=x.k_src, v_src=v_src)[0][0]


def check(
    found: Sequence[BenchSite], dtype: torch.dtype, device: torch.device, most_tokens: int | None = None
) -> list[tuple[str, str, float, float]]:
    """(site, way, its error, the maps version's), both against float64, with at most so many tokens.

    Raises FzError where one exceeds twice the maps'.
    """
    checked = []
    for site in found:
        tokens = min(site.tokens, most_tokens or site.tokens)
        if site.kind == "self":
            x = self_case(site, dtype, device, tokens)
            ways, exact, unmixed = self_ways(x), exact_self(x), exact_self(x, mixed=False)
        else:
            x = cross_case(site, dtype, device, tokens)
            ways, exact, unmixed = cross_ways(x), exact_cross(x), None
        allowed = 2 * error(ways["maps"](), exact)
        for name, way in ways.items():
            truth = unmixed if name in UNMIXED else exact
            found_error = error(way(), truth)
            # a NaN compares false
            if not found_error <= allowed:
                raise FzError(
                    f"{site.name}: '{name}' has error {found_error:.2e} against float64, expected at most "
                    f"{allowed:.2e}, twice that of maps in the same dtype. Nothing was timed."
                )
            checked.append((site.name, name, found_error, allowed / 2))
    return checked


def memory(way: Way, device: torch.device) -> tuple[int, int]:
    """(largest tensor made, most held at once above what was held before), bytes; on a GPU all the allocator gave."""
    counted = temporaries(way)
    if device.type != "cuda":
        return counted.largest().bytes, counted.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    torch.cuda.synchronize(device)
    return counted.largest().bytes, torch.cuda.max_memory_allocated(device) - before


def measure(site: BenchSite, ways: dict[str, Way], rounds: int, device: torch.device) -> list[Timing]:
    """Every way at one site, the ways taking turns; short ones are repeated within a turn."""
    memories = {name: memory(way, device) for name, way in ways.items()}  # warms up, too
    taken: dict[str, list[float]] = {name: [] for name in ways}
    if device.type == "cuda":
        from triton.testing import do_bench

        quantiles = {name: [1e-3 * t for t in do_bench(way, quantiles=[0.2, 0.5, 0.8])] for name, way in ways.items()}
        return [Timing(site, name, *quantiles[name], *memories[name]) for name in ways]
    repeats = {name: max(1, min(50, round(0.02 / seconds(way)))) for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way, repeats[name]))
    timings = []
    for name, times in taken.items():
        p20, p50, p80 = (quantile(times, q) for q in (0.2, 0.5, 0.8))
        timings.append(Timing(site, name, p20, p50, p80, *memories[name], rounds=tuple(times)))
    return timings


def quantile(times: Sequence[float], q: float) -> float:
    return torch.tensor(times, dtype=torch.float64).quantile(q).item()


def ratio(timings: Sequence[Timing], one: str, other: str) -> float:
    """How many times as long `one` takes as `other`: the median over rounds that took turns, or of medians."""
    a, b = (next(t for t in timings if t.way == name) for name in (one, other))
    if not a.rounds:
        return a.p50 / b.p50
    return statistics.median(x / y for x, y in zip(a.rounds, b.rounds, strict=True))


def summary(timings: Sequence[Timing]) -> list[str]:
    """The ratios that decide, a line a site, and the mixed mask's cost over all self sites."""
    lines = []
    by_site = {site: [t for t in timings if t.site == site] for site in dict.fromkeys(t.site for t in timings)}
    for site, own in by_site.items():
        line = f"{site.name:20} {ratio(own, 'maps', 'this'):6.2f} x as fast as maps, "
        line += f"{ratio(own, 'two attentions + blend', 'this'):5.2f} x two attentions"
        if site.kind == "self":
            line += f", {ratio(own, 'maps in place, a frame at a time', 'this'):5.2f} x maps in place"
            line += f"; unmixed {ratio(own, *UNMIXED):.3f} x one plain attention"
            line += f"; mixed {ratio(own, 'this', UNMIXED[0]):.3f} x unmixed"
        lines.append(line)
    own = [t for t in timings if t.site.kind == "self"]
    if own:
        mixed, unmixed = (sum(t.p50 * t.site.layers for t in own if t.way == name) for name in ("this", UNMIXED[0]))
        one_each = sum(t.p50 for t in own if t.way == "this") / sum(t.p50 for t in own if t.way == UNMIXED[0])
        lines.append(
            f"mixed mask, summed over self sites: {one_each:.3f} x unmixed; "
            f"weighted by their layers {mixed / unmixed:.3f} x"
        )
    return lines


def rows_of(
    timings: Sequence[Timing], peak: float, given: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """CSV rows."""
    common = {
        "commit": commit(),
        "machine": machine(device),
        "torch": torch.__version__,
        "kernels": kernels.choose(device),
        "dtype": given.dtype,
        "threads": torch.get_num_threads(),
        "size": given.size,
        "frames": given.frames,
        "anchors": given.anchors,
    }
    rows = []
    for t in timings:
        times = {f"p{name} ms": f"{1e3 * value:.4f}" for name, value in ((20, t.p20), (50, t.p50), (80, t.p80))}
        rates = {"GFLOP/s": f"{t.rate() / 1e9:.1f}", "share of GEMM peak": f"{t.rate() / peak:.3f}"}
        memories = {"largest MB": f"{t.largest / 1e6:.2f}", "peak MB": f"{t.peak / 1e6:.2f}"}
        rows.append(common | {"site": t.site.name, "layers": t.site.layers, "way": t.way} | times | rates | memories)
    return rows


@torch.no_grad()
def run(given: argparse.Namespace) -> list[Timing]:
    """Check, then time, then print; returns what was measured."""
    device, dtype = pick_device("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[given.dtype]
    if given.threads:
        torch.set_num_threads(given.threads)
    found = sites(given.size, given.frames, given.anchors)
    print(
        f"{machine(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"kernels: {kernels.choose(device)}, {given.dtype}, {given.frames} frames of {given.size} x {given.size}, "
        f"{given.anchors} anchors, commit {commit()}"
    )
    fewer = [replace(site, frames=min(site.frames, max(3, site.anchors))) for site in found]
    checked = check(fewer, dtype, device, CHECKED_TOKENS) + check(
        [site for site in found if site.map <= CHECKED_MAP], dtype, device
    )
    where, way, worst, of_maps = max(checked, key=lambda row: row[2] / row[3])
    print(
        "correct: no error against float64 exceeds twice the maps version's "
        f"(worst: '{way}' at {where}, {worst / of_maps:.2f} x)"
    )
    timings: list[Timing] = []
    peaks = [gemm_peak(dtype, device)]
    names = " ".join(f"{name:>9}" for name in ("p20", "p50", "p80 ms"))
    print(f"{'site':20} {'way':36} {names} {'GFLOP/s':>8} {'of peak':>8} {'largest':>9} {'peak MB':>9}", flush=True)
    for site in found:
        ways = (
            self_ways(self_case(site, dtype, device))
            if site.kind == "self"
            else cross_ways(cross_case(site, dtype, device))
        )
        for t in measure(site, ways, given.rounds, device):
            timings.append(t)
            times = " ".join(f"{1e3 * value:9.3f}" for value in (t.p20, t.p50, t.p80))
            rate = f"{t.rate() / 1e9:8.1f} {100 * t.rate() / peaks[0]:6.0f} %"
            print(f"{site.name:20} {t.way:36} {times} {rate} {t.largest / 1e6:9.2f} {t.peak / 1e6:9.2f}", flush=True)
    peaks.append(gemm_peak(dtype, device))
    print(f"GEMM peak, before and after: {peaks[0] / 1e9:.0f}, {peaks[1] / 1e9:.0f} GFLOP/s")
    print("\n".join(summary(timings)))
    if given.csv:
        append(given.csv, ATTENTION, rows_of(timings, max(peaks), given, device))
    return timings
