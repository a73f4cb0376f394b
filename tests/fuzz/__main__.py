"""The command line: inputs of all kinds in turn, until the minutes or the count are over; a line for each that
failed, with what repeats it.
"""

import argparse
import os
import pickle
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from . import checks, files, flags, folders, ground, media
from .children import SECONDS, Ended, import_all, in_child, run_command

KINDS = {
    "flags": flags.flags,
    "media": media.media,
    "yaml": files.yaml,
    "weights": files.weights,
    "configs": files.configs,
    "results": folders.results,
    "sentences": flags.sentences,
    "caches": folders.caches,
    "tunings": folders.tunings,
    "surroundings": flags.surroundings,
    "cells": folders.cells,
    "sweeps": flags.sweeps,
    "batches": files.batches,
}
# whose inputs take seconds: every second round
LONG = ("tunings", "surroundings")


def make(kind: str, number: int, seed: int, made: ground.Ground, work: Path) -> checks.Input:
    """The input of that kind, number and seed, and its files; made in a child, so that nothing of it stays."""
    for name in ("canary", "home", "tmp", "cwd"):
        (work / name).mkdir(parents=True)
    (work / "canary" / "letter.txt").write_text("keep me")
    (work / "canary" / ".letter.txt.part").write_text("keep me, too")
    place = work / "cwd"
    (place / "tmp").mkdir()
    (place / "canary").mkdir()
    (place / "canary" / "letter.txt").write_text("keep me")

    def draw() -> None:
        given = KINDS[kind](Random(f"{seed}/{kind}/{number}"), made, place)
        (work / "input").write_bytes(pickle.dumps(given))

    ended = in_child(draw, work, seconds=60)
    if ended.code != 0:
        raise RuntimeError(f"making {kind} {number} of seed {seed}: {ended}")
    given = pickle.loads((work / "input").read_bytes())
    # FZ_CACHE: a run without --cache must not reach the user's
    usual = {"HOME": str(work / "home"), "TMPDIR": str(place / "tmp"), "FZ_CACHE": "cache", "COLUMNS": "100"}
    given.environment = usual | given.environment
    given.keep += [work / "canary", place / "canary"]
    return given


def run(given: checks.Input, work: Path, made: ground.Ground, baseline: int) -> tuple[Ended, list[str]]:
    given.keep = list(dict.fromkeys([*given.keep, made.folder]))
    before = {path: checks.seen(path) for path in given.keep}
    ended = in_child(
        lambda: run_command(given.command, given.argv, given.folder, given.environment, given.stdout), work
    )
    found = checks.faults(given, ended, before, baseline)
    if (given.folder / "pwned").exists():
        found.append("harm: what a file brought was run")
    return ended, found


def shown(given: checks.Input) -> str:
    words = [word if len(word) < 300 else f"{word[:60]}…({len(word)} characters)" for word in given.argv]
    more = [f"{k}={v}" for k, v in given.environment.items() if k not in ("HOME", "TMPDIR", "COLUMNS") and v != "cache"]
    return shlex.join([*more, "python", "-m", given.command, *words]) + (
        "" if given.stdout == "file" else f" >{given.stdout}"
    )


def campaign(given: argparse.Namespace, home: Path) -> int:
    import_all()
    made = ground.prepare(home / "ground")
    baseline = in_child(lambda: None, home).peak
    turns = given.only or [*KINDS, *(kind for kind in KINDS if kind not in LONG)]
    end, number = time.monotonic() + 60 * given.minutes, given.first
    failed, slowest, largest = Counter(), (0.0, ""), (0, "")
    counts, codes, spent, labels = Counter(), Counter(), Counter(), Counter()
    began = time.monotonic()
    while time.monotonic() < end and number - given.first < given.count:
        (whole, part), work = divmod(number, len(turns)), home / "work"
        kind = turns[part]
        i = whole * turns.count(kind) + turns[:part].count(kind) if given.input is None else given.input
        number += 1
        shutil.rmtree(work, ignore_errors=True)
        one = make(kind, i, given.seed, made, work)
        ended, found = run(one, work, made, baseline)
        counts[kind] += 1
        codes[f"{one.command} {ended.code if ended.signal is None else f'signal {ended.signal}'}"] += 1
        slowest = max(slowest, (ended.cpu, f"{kind} {i}"))
        largest = max(largest, (ended.peak - baseline, f"{kind} {i}"))
        labels.update({fault.partition(":")[0] for fault in found})
        spent[kind] += ended.cpu
        if found:
            failed[kind] += 1
            print(f"FAIL {kind} {i} ({one.about or one.command}): {'; '.join(found)}\n  {shown(one)}")
            print(
                f"  again: python -m tests.fuzz --seed {given.seed} --only {kind} --input {i} --keep FOLDER", flush=True
            )
        if given.verbose or given.input is not None:
            print(
                f"{kind} {i}: {ended.seconds:.2f} s, {ended.cpu:.2f} s of CPU, {(ended.peak - baseline) / 1e6:.0f} MB, "
                f"code {ended.code}  {shown(one)}"
            )
            print(ended.out + ended.err, flush=True)
        if given.input is not None:
            break
    total, minutes = sum(counts.values()), (time.monotonic() - began) / 60
    print(f"{total} inputs in {minutes:.1f} minutes, kinds: {', '.join(f'{k} {n}' for k, n in counts.items())}")
    bars = (
        f"{labels['traceback']} tracebacks, {labels['code']} wrong codes, {labels['late']} hangs over {SECONDS:.0f} s"
    )
    peak = f"{largest[0] / 1e9:.2f} GB above the start's ({largest[1]}), at most {checks.MEMORY / 1e9:.2f}"
    print(f"bars: {bars}, peak memory {peak}")
    mean = ", ".join(f"{k} {spent[k] / n:.2f}" for k, n in counts.items())
    print(f"seconds of CPU: {mean}; most: {slowest[0]:.1f} ({slowest[1]})")
    print("ends: " + ", ".join(f"{name}: {n}" for name, n in sorted(codes.items())))
    print(
        f"{sum(failed.values())} failed" + (f" ({', '.join(f'{k} {n}' for k, n in failed.items())})" if failed else "")
    )
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=10**9, help="inputs at most")
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--input", type=int, help="that input of the kind alone, and all that it prints")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder, and leave it")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(argv)
    os.environ["TZ"] = "UTC"
    if given.keep:
        shutil.rmtree(given.keep, ignore_errors=True)
        return campaign(given, given.keep.resolve())
    # no TemporaryDirectory: its exit function would be called by every child
    home = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    try:
        return campaign(given, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
