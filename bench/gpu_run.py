"""What a stage of `bench.gpu` knows of its run: the device, how much time is left, and how a call is timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Row = dict[str, object]
HOST = "with host ms"  # of a row: what `Run.clock` says where "ms" is what `Run.replayed` does
# seconds from the start by which a stage should be done
ENDS = {0: 10, 1: 70, 2: 150, 3: 250, 4: 280, 5: 420, 6: 460}


def reason_of(error: BaseException) -> str:
    """An error's kind and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]


@dataclass(frozen=True)
class Run:
    """device: what is measured; small: sizes for a dry run; start, seconds: of the clock; alone: one stage, which has
    all of the time.
    """

    device: torch.device
    small: bool
    start: float
    seconds: float
    alone: bool = False

    def until(self, stage: int) -> float:
        """When a stage should be done, in proportion to the whole."""
        if self.alone:
            return self.start + self.seconds
        return self.start + ENDS[stage] / ENDS[6] * self.seconds

    def late(self, stage: int) -> bool:
        """Is it later than that?"""
        return time.monotonic() > self.until(stage)

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
        """Milliseconds of a call without its host's: of 12 in a CUDA graph; without CUDA as `clock`."""
        if self.device.type != "cuda":
            return self.clock(f)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            f()
        self.sync()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(12):
                f()
        return self.clock(graph.replay) / 12
