"""Runs functions and command lines in forked children: all that is slow to import is there already, and nothing that
one of them does reaches the next.
"""

import atexit
import contextlib
import importlib
import io
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30.0  # of work, after which a child counts as one that hangs
IDLE = 10.0  # seconds without any work that count so, too: other processes may be at work on the machine
ROOM = 5 * 2**30  # bytes of addresses beside what the parent has: the machine survives what the checks will blame
LARGEST_FILE = 2 * 2**30


@dataclass(frozen=True)
class Ended:
    """How a child ended. code: its exit code, None where a signal ended it; late: it was killed for it; seconds: by
    the clock, cpu: at work; peak: bytes of memory; left: processes of its were still there.
    """

    code: int | None
    signal: int | None
    late: bool
    left: bool
    seconds: float
    cpu: float
    peak: int
    out: str
    err: str


def import_all() -> None:
    """What any command imports, once, before the first fork; one thread: a fork would lose others."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(1)
    for name in (
        *("fz.run", "fz.prompt", "fz.tune", "fz.evaluate", "fz.report", "fz.sweep", "fz.batch"),
        *("bench.table1", "bench.table1_cells", "fz.mini.evaluate", "fz.mini.evaluation"),
        *("fz.pipeline", "fz.tuning.trainer", "fz.weights.write", "fz.weights.clip", "tqdm"),
    ):
        importlib.import_module(name)


def in_child(work: Callable[[], Any], folder: Path, seconds: float = SECONDS) -> Ended:
    """Call `work` in a forked child whose output goes to files in `folder`; it returns an exit code, or None."""
    files = folder / "stdout", folder / "stderr"
    sys.stdout.flush(), sys.stderr.flush()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        end(work, *files)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both sides: whoever is first
    late, worked, since = False, -1.0, start
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        now, work_done = time.monotonic(), work_of(pid)
        if work_done > worked:
            worked, since = work_done, now
        if (worked > seconds or now - since > IDLE) and not late:
            late = True
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.002 if now - start < 1 else 0.05)
    took = time.monotonic() - start
    left = False
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
        left = not late
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    out, err = (file.read_bytes()[:2_000_000].decode("utf-8", "replace") for file in files)
    return Ended(code, number, late, left, took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, out, err)


def work_of(pid: int) -> float:
    """Seconds that a process and those of its children that have ended were at work."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def limit() -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def redirect(out: Path, err: Path) -> None:
    """A standard input that is empty, and outputs that are files."""
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        opened = os.open(path, flags | (os.O_CREAT | os.O_TRUNC if number else 0), 0o644)
        os.dup2(opened, number)
        os.close(opened)
    reopen("utf-8")


def reopen(encoding: str) -> None:
    """Python's outputs anew, as an interpreter that starts makes them."""
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding=encoding)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False),  # noqa: SIM115
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def end(work: Callable[[], Any], out: Path, err: Path) -> None:
    """Call it and leave as an interpreter does: threads are waited for, exit functions called, outputs flushed."""
    code = 1
    try:
        os.setpgid(0, 0)
        limit()
        redirect(out, err)
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        # an interpreter's own words and code
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"Exception ignored: {type(error).__name__}: {error}\n".encode())
        code = 120
    os._exit(code)


def run_command(
    name: str, argv: Sequence[str], folder: Path, environment: Mapping[str, str | None], stdout: str = "file"
) -> int:
    """`python -m name argv` in the current process. stdout: 'file', 'closed', 'full' (a full disk), or an encoding."""
    os.chdir(folder)
    for key, value in environment.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
    if stdout == "closed":
        os.close(1)
        sys.stdout = None
    elif stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif stdout != "file":
        reopen(stdout)
    sys.argv = [name, *argv]
    return importlib.import_module(name).main(list(argv))
