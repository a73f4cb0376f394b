"""A batch's jobs, done by any number of processes on any number of machines that share a folder: which job does this
process do next, and when are all of them done?

A job is claimed by a lock in the results' folder, which goes with its process: what a dead one had begun is taken over,
by those that still run or by the next start, from its last step. No process needs another, or knows of it.
"""

import contextlib
import dataclasses
import gc
import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fz import records
from fz.checkpoint import settled
from fz.clips.decode import check_source
from fz.clips.media import write_json
from fz.clips.user_mask import read_mask
from fz.errors import FzError
from fz.loaded import Models
from fz.metrics.measure import Truth
from fz.pipeline import run
from fz.progress import Progress
from fz.ranks import numbers_of_torchrun
from fz.results import reuse
from fz.results.batch import FAILED, JOBS, TABLES, failure, failure_file, read_failure, read_measured
from fz.results.beside import EVALUATION, beside
from fz.results.claim import unlisted
from fz.results.folder import read_run
from fz.results.lock import Busy, Lock
from fz.results.measured import clip_for, clip_name_for, measure_folder
from fz.results.report import write_report
from fz.results.result import Result
from fz.results.rows import check_replaceable, write_rows
from fz.settings.config import Settings
from fz.settings.jobs import Job
from fz.shell import explain
from fz.weights.layouts import some

PAUSE = 0.5  # seconds between looks at jobs that others do


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process is this, of how many? As torchrun says; 0 of 1 without it."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> "Place":
        """Also makes the GPU of this process's number the current one. Raises FzError for what is no place."""
        rank, world, local = numbers_of_torchrun("batch")
        if world > 1 and torch.cuda.is_available():
            torch.cuda.set_device(local % torch.cuda.device_count())
        return cls(rank, world)


@dataclasses.dataclass
class Named(Progress):
    """What a job's run tells, with the job's name before it; stages are shown where only one process runs."""

    name: str
    inner: Progress
    stages: bool

    def say(self, line: str) -> None:
        self.inner.say(f"{self.name}: {line}")

    def stage(self, name: str, steps: int) -> contextlib.AbstractContextManager:
        return (self.inner if self.stages else super()).stage(f"{self.name}, {name}", steps)


class Queue:
    """The jobs that are left, as this process sees them. out: the batch's folder; clip_model: what judges results."""

    def __init__(self, jobs: Sequence[Job], out: Path, place: Place, progress: Progress, clip_model: str | None = None):
        self.jobs, self.out, self.place, self.progress = list(jobs), out, place, progress
        self.clip_model, self.models = clip_model, Models()
        self.known: dict[str, Settings | None] = {}
        self.alike: dict[Hashable, list[str]] = {}  # names of jobs, by their clip
        # what failed before this start is tried again
        self.old = {job.name: token for job in jobs if (token := read_failure(out, job.name).get("token"))}

    def check_folder(self, overwrite: bool) -> dict[str, Any] | None:
        """What was claimed there before. Raises FzError for a folder that holds other files, or another batch's."""
        before = records.read(self.out / JOBS, {"jobs": [{"name": str, "argv": [str]}]})
        if self.out.exists() and not self.out.is_dir():
            raise FzError(f"out: {self.out} is a file, expected a folder. Pass another --out.")
        others = self.out.is_dir() and any(not p.name.startswith(".") for p in self.out.iterdir())
        if before is None and others and not overwrite:
            raise FzError(f"out: {self.out} holds other files. Pass another --out, or --overwrite to write there.")
        if before is None and (theirs := [name for name in TABLES if (self.out / name).exists()]):
            raise unlisted(self.out / theirs[0])
        there = [job["name"] for job in before["jobs"]] if before else []
        if there and not overwrite and not {job.name for job in self.jobs} & set(there):
            raise FzError(
                f"out: {self.out} holds another batch's results ({some(there)}), none of these jobs. Pass another "
                "--out, or --overwrite to write there."
            )
        if (self.out / FAILED).exists() and not (self.out / FAILED).is_dir():
            raise FzError(f"out: {self.out / FAILED} is a file, expected a folder. Move it, or pass another --out.")
        return before

    def start(self, overwrite: bool) -> None:
        """Claim the batch's folder. Raises FzError for one that is another's, or cannot be written or locked."""
        content = {"jobs": [{"name": job.name, "argv": list(job.argv)} for job in self.jobs]}
        before = self.check_folder(overwrite)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.out, name=f".fz-probe-{uuid.uuid4().hex}")
        except OSError as error:
            raise FzError(f"out: {self.out} cannot be written ({error.strerror}). Pass another --out.") from error
        with lock:
            if not lock.held and self.place.world > 1:
                raise FzError(
                    f"out: the file system of {self.out} has no locks, by which processes share jobs. Pass another "
                    "--out, or start one process."
                )
        if before != content:
            write_json(self.out / JOBS, content)

    def settings(self, job: Job) -> Settings | None:
        """As the run will have them in its run.json; None for a job that has none."""
        if job.name not in self.known:
            try:
                settings = settled(job.settings(self.out))[0]
                self.known[job.name] = dataclasses.replace(settings, overwrite=False)
            except FzError:
                self.known[job.name] = None
        return self.known[job.name]

    def work(self) -> None:
        """Do jobs until all are done, by this process or others."""
        first = self.place.rank * len(self.jobs) // self.place.world
        left = [*self.jobs[first:], *self.jobs[:first]]
        while left:
            did, later = False, []
            for job in list(left):
                if self.finished(job):
                    left.remove(job)
                elif self.clip_is_busy(job):
                    later.append(job)
                else:
                    did |= self.attempt(job)
            # two processes that begin a clip both invert it: only where there is nothing else to do
            did = did or any(self.attempt(job) for job in later)
            if left and not did:
                time.sleep(PAUSE)

    def attempt(self, job: Job) -> bool:
        """Do the job, unless another process does it or has done it meanwhile. Returns whether this one did."""
        with self.claimed(job) as mine:
            if not mine or self.finished(job):
                return False
            self.do(job)
            return True

    def clip_is_busy(self, job: Job) -> bool:
        """Does another job of the same clip, under the same sentence, seem to be in progress elsewhere?"""
        if not self.alike:
            for other in self.jobs:
                self.alike.setdefault(self.clip_of(other), []).append(other.name)
        return any((self.out / claim(name)).exists() for name in self.alike[self.clip_of(job)] if name != job.name)

    def clip_of(self, job: Job) -> Hashable:
        settings = self.settings(job)
        return job.name if settings is None else (settings.clip, settings.source)

    @contextlib.contextmanager
    def claimed(self, job: Job) -> Iterator[bool]:
        """Whether the job is this process's, which it stays for the block."""
        try:
            lock = Lock(self.out, name=claim(job.name))
        except Busy:
            yield False
            return
        with lock:
            yield True

    def finished(self, job: Job) -> bool:
        """Is it done, and measured, or did it fail since this process began?"""
        token = read_failure(self.out, job.name).get("token")
        if token is not None:
            return token != self.old.get(job.name)
        settings = self.settings(job)
        if settings is None:
            return False
        folder = self.out / job.name
        versions = (read_run(folder) or {}).get("versions", {})
        # whichever threads it was done with, here or elsewhere, by now it is done
        found = reuse.same_run(folder, settings, versions)
        if found is None or found["status"] != "done" or "evaluation.json" not in found["files"]:
            return False
        if settings.report and "report.html" not in found["files"]:
            return False
        # by another CLIP, or with other masks than the job has now, it is measured again
        by = clip_name_for(folder, self.clip_model), job.masks is not None
        rows = read_measured(self.out, job.name)
        return bool(rows) and all((row["clip"], row["masks"] == "given") == by for row in rows)

    def do(self, job: Job) -> None:
        """Run it, measure it, or note in a line why that cannot be."""
        try:
            settings = job.settings(self.out)
            check_source(settings.clip.path)
            check_replaceable(self.out / job.name / "evaluation", overwrite=False)
            result = run(settings, self.told(job), self.models)
            self.measure(job, settings, result)
            failure_file(self.out, job.name).unlink(missing_ok=True)
            if not self.finished(job):
                raise FzError(f"out: {self.out / job.name} is not whole right after its run. Did something change it?")
        except Exception as error:
            line, _ = explain(error)
            del error
            write_json(failure_file(self.out, job.name), failure(job.name, line, uuid.uuid4().hex))
            self.progress.say(f"{job.name}: failed. {line}")
            # what the failed run had in memory is not the next one's
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def measure(self, job: Job, settings: Settings, result: Result) -> None:
        """evaluation.json and .csv, and the page if it was asked for, into the job's folder."""
        folder = Path(result.out)
        clip = clip_for(folder, self.clip_model)
        rows = measure_folder(folder, clip, truth_of(job, settings, result))
        check_replaceable(folder / "evaluation", overwrite=False)
        with beside(folder, *EVALUATION):
            write_rows(folder / "evaluation", [{**row, "result": job.name} for row in rows])
        if settings.report:
            write_report(folder, clip)

    def told(self, job: Job) -> Progress:
        return Named(job.name, self.progress, stages=self.place.world == 1)

    def check(self) -> list[tuple[str, str | None]]:
        """A dry run of every job: (name, what is wrong with it in one line, or None)."""
        found = []
        for job in self.jobs:
            try:
                settings = job.settings(self.out, dry_run=True)
                check_source(settings.clip.path)
                check_replaceable(self.out / job.name / "evaluation", overwrite=False)
                result = run(settings, models=self.models)
                truth_of(job, settings, result)
                found.append((job.name, None))
            except Exception as error:
                found.append((job.name, explain(error)[0]))
        return found


def claim(name: str) -> str:
    """The file by which a process has a job."""
    return f".fz-claim-{name}"


def truth_of(job: Job, settings: Settings, result: Result) -> Truth | None:
    """Where the job's masks say that its clip may change."""
    if job.masks is None or result.video is None:
        return None
    return Truth(masks=read_mask(job.masks, settings.clip, result.video).numpy() > 0)
