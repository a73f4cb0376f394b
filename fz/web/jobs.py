"""Who waits for the device, who has it, and how far is he? One job runs at a time, the others keep their places.

A job is also a file beside its visitor's clips until it ends: a server that was killed takes up what it left.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.shell import explain
from fz.web.folder import Folder, new_id, read_json, write_json

MOST_WAITING = 6  # jobs of one visitor
MOST_OF_ALL = 60
# a server that dies of a job meets it again this often
MOST_TRIES = 2
REMEMBERED = 600  # seconds for which an ended job is told of


class Cancelled(Exception):
    """The visitor does not want it any more."""


@dataclass
class Job:
    """kind: preview, run or sheet. state: waiting, running, done, failed or cancelled. work, of: done and in all, in
    steps of inversion. stays: it goes on when its page is closed. line: what went wrong. made: the id of what came out.
    """

    visitor: str
    clip: str
    kind: str
    form: dict[str, Any]
    stays: bool = True
    id: str = field(default_factory=new_id)
    state: str = "waiting"
    stage: str = ""
    work: float = 0.0
    of: float = 0.0
    tries: int = 0
    line: str = ""
    made: str = ""
    began: float = 0.0
    ended: float = 0.0
    unwanted: bool = False

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def begin(self, stage: str) -> None:
        """Raises Cancelled where it is not wanted any more."""
        self.stage = stage
        if self.unwanted:
            raise Cancelled

    def step(self, work: float) -> None:
        """So much was done. Raises Cancelled."""
        self.work += work
        if self.unwanted:
            raise Cancelled

    def left(self) -> float | None:
        """Seconds, by how long the part that is done took; None before there is one."""
        if self.state != "running" or self.work <= 0 or self.of <= 0:
            return None
        return max(0.0, (time.monotonic() - self.began) * (self.of - self.work) / self.work)


class Queue:
    """The jobs of all visitors; `do` does one, in a thread of its own."""

    def __init__(self, folder: Folder, do: Callable[[Job], str]):
        self.folder, self.do = folder, do
        self.jobs: list[Job] = []
        self.change = threading.Condition()
        self.closing = False
        for path in sorted(folder.visitors.glob("*/jobs/*.json"), key=lambda p: p.stat().st_mtime):
            self.take_up(path)

    def start(self, first: Callable[[], None]) -> None:
        """Begin with `first`, which is no visitor's."""

        def work() -> None:
            try:
                first()
            except Exception as error:
                print(f"fz web: {explain(error)[0]}", flush=True)
            self.work()

        threading.Thread(target=work, name="fz-web-jobs", daemon=True).start()

    def take_up(self, path: Path) -> None:
        """A job that a killed server left."""
        left = read_json(path)
        try:
            job = Job(path.parent.parent.name, left["clip"], left["kind"], left["form"], left["stays"], path.stem)
            job.tries = int(left["tries"])
        except (KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)
            return
        if not job.stays or job.tries >= MOST_TRIES:
            path.unlink(missing_ok=True)
            if not job.stays:
                return
            job.state, job.ended = "failed", time.monotonic()
            job.line = f"The server stopped {job.tries} times during this. Try a smaller or shorter clip."
        self.jobs.append(job)

    def submit(self, job: Job) -> Job:
        """The job at the end of the queue, or the very same one that is there already. Raises FzError where too many
        wait.
        """
        with self.change:
            self.forget()
            open_jobs = [other for other in self.jobs if not other.over]
            own = [other for other in open_jobs if other.visitor == job.visitor]
            for other in own:
                if (other.clip, other.kind, other.form) == (job.clip, job.kind, job.form) and not other.unwanted:
                    return other
            if len(own) >= MOST_WAITING:
                raise FzError(f"You have {len(own)} edits waiting. Let one finish, or cancel one.")
            if len(open_jobs) >= MOST_OF_ALL:
                raise FzError("Too many people are waiting just now. Try again in some minutes.")
            try:
                self.write(job)
            except OSError as error:
                raise FzError(f"The server has no room for it ({error.strerror or error}). Try again later.") from error
            self.jobs.append(job)
            self.change.notify_all()
        return job

    def cancel(self, visitor: str, job_id: str) -> bool:
        """At the next step, or at once where it waits. Whether there was one."""
        with self.change:
            for job in self.of(visitor):
                if job.id == job_id and not job.over:
                    job.unwanted = True
                    if job.state == "waiting":
                        self.end(job, "cancelled")
                    return True
        return False

    def left_alone(self, visitor: str) -> None:
        """The visitor's last page was closed: what was not to stay is cancelled."""
        for job in self.of(visitor):
            if not job.stays and not job.over:
                self.cancel(visitor, job.id)

    def of(self, visitor: str) -> list[Job]:
        return [job for job in self.jobs if job.visitor == visitor]

    def place(self, job: Job) -> int:
        """How many are before it, the running one among them."""
        waiting = [other for other in self.jobs if not other.over]
        return waiting.index(job) if job in waiting else 0

    def told(self, visitor: str) -> list[dict[str, Any]]:
        """What a page shows of its visitor's jobs."""
        with self.change:
            self.forget()
            return [
                {
                    "id": job.id,
                    "clip": job.clip,
                    "kind": job.kind,
                    "state": job.state,
                    "stage": job.stage,
                    "place": self.place(job),
                    "share": round(min(1.0, job.work / job.of), 3) if job.of else 0.0,
                    "left": None if job.left() is None else round(job.left(), 1),
                    "line": job.line,
                    "made": job.made,
                }
                for job in self.of(visitor)
            ]

    # ---- the thread ----------------------------------------------------------------------------------------

    def work(self) -> None:
        while (job := self.next()) is not None:
            try:
                job.begin("Getting ready")
                made = self.do(job)
                self.end(job, "done", made=made)
            except Cancelled:
                self.end(job, "cancelled")
            except Exception as error:
                line, code = explain(error)
                if code == 1:
                    # a bug is for whoever runs the server; the visitor learns that there is one
                    print(f"fz web: {line}", flush=True)
                    line = "Something went wrong here that is not your doing. The server's log has it."
                self.end(job, "failed", line=self.folder.told(line))

    def next(self) -> Job | None:
        """The first that waits; None when the server closes."""
        with self.change:
            while not self.closing:
                job = next((job for job in self.jobs if job.state == "waiting"), None)
                if job is not None:
                    job.state, job.began, job.tries = "running", time.monotonic(), job.tries + 1
                    # a full disk: the file stays as it was, and the job is done all the same
                    with contextlib.suppress(OSError):
                        self.write(job)
                    return job
                self.change.wait()
        return None

    def end(self, job: Job, state: str, line: str = "", made: str = "") -> None:
        with self.change:
            job.line, job.made, job.ended, job.state = line, made, time.monotonic(), state
            self.path(job).unlink(missing_ok=True)

    def close(self) -> None:
        """No further job begins; the one that runs goes on, at the next start from its inversion, and an end that was
        asked for is no try of it.
        """
        with self.change:
            self.closing = True
            for job in self.running():
                job.tries -= 1
                with contextlib.suppress(OSError):
                    self.write(job)
            self.change.notify_all()

    def forget(self) -> None:
        """Jobs that ended long ago."""
        now = time.monotonic()
        self.jobs = [job for job in self.jobs if not job.over or now - job.ended < REMEMBERED]

    def path(self, job: Job) -> Path:
        return self.folder.visitors / job.visitor / "jobs" / f"{job.id}.json"

    def write(self, job: Job) -> None:
        kept = {name: asdict(job)[name] for name in ("clip", "kind", "form", "stays", "tries")}
        write_json(self.path(job), json.loads(json.dumps(kept)))

    def running(self) -> Iterator[Job]:
        return (job for job in self.jobs if job.state == "running")
