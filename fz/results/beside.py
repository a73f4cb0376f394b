"""Which files do commands write beside a run's own: its report, its numbers, a sweep's sheet?

They are listed in `run.json` before they are written, as a run's own are: a file that is not listed is the user's.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fz.results.claim import RUN, read_run, unlisted, write

REPORT = "report.html"
EVALUATION = ("evaluation.json", "evaluation.csv")
SWEEP = ("sweep.png", "sweep.json", "sweep.csv")
ADDED = (REPORT, *EVALUATION, *SWEEP)


def check_beside(folder: Path, *names: str) -> None:
    """Raise FzError where one of them is there that no run listed."""
    listed = (read_run(folder) or {"files": []})["files"]
    for name in names:
        place = folder / name
        if place.is_symlink() or (place.exists() and name not in listed):
            raise unlisted(place)


@contextlib.contextmanager
def beside(folder: Path, *names: str) -> Iterator[None]:
    """Where these files are written beside a finished run; at the block's end they are there. Whether they may be is
    the caller's question.
    """
    run = read_run(folder)
    if run is not None and run["status"] != "running" and not {*names} <= {*run["files"]}:
        write(folder / RUN, {**run, "files": sorted({*run["files"], *names})})
    yield
    completed(folder, *names)


def completed(folder: Path, *names: str) -> None:
    """Say in a finished run's `run.json` that these files were written beside its own; with the last that it awaits,
    the run is done.
    """
    run = read_run(folder)
    if run is None or run["status"] == "running":
        return
    awaits = [name for name in run.pop("awaits", []) if name not in names]
    run |= {"awaits": awaits} if awaits else {"status": "done"}
    write(folder / RUN, {**run, "files": sorted({*run["files"], *names})})
