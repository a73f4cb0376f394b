"""What a run tells while it goes, and what is noted of it: lines, bars, seconds and memory.

Libraries are quiet: `Progress` keeps silent, `bars()` prints, as the command line does.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from fz.errors import FzError
from fz.memory.machine import peak_memory
from fz.settings.spoken import in_python


class Progress:
    """What a run tells while it goes. This one keeps silent."""

    def say(self, line: str) -> None:
        """One line: what was loaded, what was decided for the user, where the results are."""

    def detail(self, line: str) -> None:
        """One line of how it is computed, for who wants to know: which layers are packed, which convolutions."""

    @contextlib.contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """A stage of so many steps; the function given is called after each."""
        yield lambda: None


def bars(verbose: bool = False) -> Progress:
    """A Progress that prints lines to stdout, details among them if it is verbose, and a bar with time left for each
    stage to stderr.
    """
    from tqdm import tqdm

    # a log file gets a line now and then, a terminal a living bar
    interval = 0.1 if sys.stderr.isatty() else 10.0

    class Bars(Progress):
        def say(self, line: str) -> None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

        def detail(self, line: str) -> None:
            if verbose:
                self.say(line)

        @contextlib.contextmanager
        def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
            with tqdm(total=steps, desc=name, unit="step", mininterval=interval) as bar:
                yield bar.update

    return Bars()


@dataclass
class Journal:
    """What is noted of a run. notes: lines for its record, told too; stages: seconds and peak memory by name."""

    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def heard(self) -> bool:
        """Does anybody see what is told?"""
        return type(self.progress).say is not Progress.say

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.progress.say(line)

    def detail(self, line: str) -> None:
        """A line for the record, told only to who wants to know."""
        self.notes.append(line)
        self.progress.detail(line)

    def say(self, line: str) -> None:
        """What differs from run to run is told, not noted."""
        self.progress.say(line)

    @contextlib.contextmanager
    def timed(self, stage: str, device: torch.device) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = round(time.perf_counter() - start, 3)
        self.stages[stage] = {"seconds": seconds, "peak_memory_bytes": peak_memory(device)}

    @contextlib.contextmanager
    def steps(self, stage: str, shown: str, steps: int, device: torch.device) -> Iterator[Callable[[], None]]:
        """A timed stage of so many steps, and what to call after each."""
        with self.timed(stage, device), self.progress.stage(shown, steps) as advance:
            yield advance


class PythonJournal(Journal):
    """Of a Python caller, whose arguments notes name."""

    def note(self, line: str) -> None:
        super().note(in_python(line))


def journal_of(progress: Any) -> Journal:
    """What a Python caller's `progress` asks for. Raises FzError for anything but True and False."""
    if not isinstance(progress, bool):
        raise FzError(f"progress: got {progress!r}, expected True or False. A callback is callback=.")
    return PythonJournal(bars() if progress else Progress())
