"""Kills and interrupts at any time: `python -m tests.fuzz.signals --kills 50 --interrupts 50`.

A command is struck one to three times, then let finish: its files have to be those of a run that nothing disturbed, and
what lies beside them untouched. Commands run in forked children, which need no imports; `--starts` interrupts whole
interpreters while they import.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .checks import difference, seen
from .children import end, import_all, run_command
from .ground import Ground, joined, prepare

COMMANDS = {"run": "fz.run", "tune": "fz.tune", "batch": "fz.batch", "table1": "bench.table1"}
TIMINGS = ("started", "finished", "stages")
SECONDS = 120.0  # after which a child counts as one that hangs


def flags_of(name: str, ground: Ground) -> list[str]:
    if name == "run":
        return joined(ground.flags(steps="6", save_latents=True, threshold="0.5", report=True))
    if name == "batch":
        flags = ground.flags(video=None, source=None, target=None, steps="3", clip_model="none", report=True)
        return [str(ground.jobs), *joined(flags)]
    return joined(ground.tuning(steps="4", sample_prompt="a blue car") if name == "tune" else ground.table1(clips="2"))


def started(name: str, ground: Ground, place: Path) -> int:
    """The process id of a forked child that runs the command in that folder; its output is below place."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        usual = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "FZ_CACHE": "cache"}
        end(
            lambda: run_command(COMMANDS[name], flags_of(name, ground), place / "cwd", usual),
            place / "said.out",
            place / "said.err",
        )
    return pid


def ended(pid: int, strike: Callable[[], None] | None = None, after: float = 0) -> int:
    """The status with which a child ended, after a strike at that time, if there is one."""
    start, struck = time.monotonic(), strike is None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        now = time.monotonic() - start
        if not struck and now > after:
            struck = True
            strike()
        if now > after + SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def place_of(folder: Path) -> Path:
    """A fresh folder to run in, with somebody else's files beside the outputs and in the cache."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("cwd/canary", "cwd/cache/photos", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("cwd/canary/letter.txt", "cwd/canary/.letter.txt.part", "cwd/cache/photos/a.jpg", "cwd/notes.txt"):
        (folder / name).write_text("keep me")
    return folder


def canaries(place: Path) -> dict[str, object]:
    return {name: seen(place / name) for name in ("cwd/canary", "cwd/cache/photos", "cwd/notes.txt")}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an output; of run.json all but its timings."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "run.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in TIMINGS}).encode()
        if path.name != "report.html":  # it shows the timings
            files[str(path.relative_to(folder))] = data
    return files


def wrong_end(number: int, status: int, err: str) -> str | None:
    """What is wrong with how a struck child ended; it may have been done before the strike."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    right = {signal.SIGKILL: (0, -9), signal.SIGINT: (0, 130), signal.SIGTERM: (0, 130, 143, -15)}[number]
    if code not in right:
        return f"code {code} after signal {number}, expected one of {right}: {err.strip()[-300:]}"
    return "a traceback" if "Traceback" in err else None


def strikes(name: str, numbers: Sequence[int], ground: Ground, home: Path, chance: random.Random) -> list[str]:
    """Strike the command with each of the signals, in rounds of up to three; a line for each thing that is wrong."""
    whole = place_of(home / "whole")
    start = time.monotonic()
    if status := ended(started(name, ground, whole)):
        raise RuntimeError(f"{name}: status {status}: {(whole / 'said.err').read_text()[-2000:]}")
    seconds, expected, said = time.monotonic() - start, content(whole / "cwd/o"), []
    left = list(numbers)
    while left:
        place = place_of(home / "struck")
        before, times = canaries(place), []
        for number in [left.pop() for _ in range(min(len(left), chance.choice((1, 1, 2, 3))))]:
            pid, after = started(name, ground, place), chance.uniform(0.02, 1.05) * seconds
            times.append(f"{signal.Signals(number).name} at {after:.2f} s")
            status = ended(pid, lambda pid=pid, number=number: os.kill(pid, number), after)
            if wrong := wrong_end(number, status, (place / "said.err").read_text(errors="replace")):
                said.append(f"{name}, {times[-1]} of {seconds:.2f}: {wrong}")
            if number != signal.SIGKILL and (spare := os.listdir(place / "tmp")):
                said.append(f"{name}, {times[-1]}: left in the temporary folder: {spare[:3]}")
        if status := ended(started(name, ground, place)):
            err = (place / "said.err").read_text(errors="replace")
            said.append(f"{name}, {', '.join(times)}: again, status {status}: {err.strip()[-300:]}")
        elif (found := content(place / "cwd/o")) != expected:
            other = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
            said.append(f"{name}, {', '.join(times)}: {len(other)} files are others: {', '.join(other[:5])}")
        now = canaries(place)
        said += [f"{name}, {', '.join(times)}: {k}: {d}" for k in now if (d := difference(before[k], now[k]))]
    return said


def starts(count: int, chance: random.Random) -> list[str]:
    """Interrupt whole interpreters while they import; only those that got as far as `main` can answer."""
    said = []
    for _ in range(count):
        argv = [sys.executable, "-m", "fz.run", "--dry-run"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(argv, **pipes)
        time.sleep(after := chance.uniform(0.5, 3))
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=SECONDS)[1]
        if process.returncode not in (0, 130) or "Traceback" in err:
            said.append(f"start, SIGINT at {after:.2f} s: code {process.returncode}: {err.strip()[-300:]}")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.signals", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="in all, shared by the commands")
    parser.add_argument("--interrupts", type=int, default=50)
    parser.add_argument("--starts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    given = parser.parse_args(argv)
    chance = random.Random(given.seed)
    # a program that a shell starts in the background ignores Ctrl-C, and so would every command that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_all()
    home = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    try:
        ground = prepare(home / "ground")
        said = starts(given.starts, chance)
        every = [signal.SIGKILL] * given.kills
        every += [chance.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM)) for _ in range(given.interrupts)]
        chance.shuffle(every)
        for i, name in enumerate(given.only):
            said += strikes(name, every[i :: len(given.only)], ground, home, chance)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print("\n".join(said))
    print(f"{given.kills} kills, {given.interrupts} interrupts, {given.starts} at the start: {len(said)} wrong")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
