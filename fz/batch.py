"""The command line, `python -m fz.batch JOBS`: many clips, on one machine or, started by torchrun, on many GPUs.

JOBS is a YAML or CSV of jobs, a folder of released configs, or a benchmark's folder; flags of fz.run count for all
jobs. Which job is whose is `fz.queue`'s question.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fz.errors import FzError
from fz.settings.flags import MEASURED_BY
from fz.settings.flags import build_parser as run_parser
from fz.settings.jobs import Job, read_jobs
from fz.settings.parse import joined, of_miniature
from fz.settings.place import slug, writable
from fz.shell import answered, leave, unknown
from fz.weights.hub import models_of

DESCRIPTION = (
    "Edit many clips. JOBS: a YAML or CSV of jobs, a folder of released FateZero configs, or the folder of TGVE 2023, "
    "V2VBench or FiVE. Flags of fz.run count for all jobs, over what the files say."
)
EPILOG = """
examples:
  python -m fz.batch jobs.yaml --dry-run
  torchrun --nproc-per-node 4 -m fz.batch loveu-tgve-2023 --checkpoint sd-v1-4 --edit style --out results/tgve

The same command goes on where it was stopped. Results: a folder a job, batch.csv, batch.json, batch.html.
"""
# of fz.run's flags, those that are about one run, and what is said of them
OF_ONE_RUN = {
    "config": "Write it in a job, or pass a folder of configs as JOBS.",
    "sweep": "Use fz.run.",
    "list_words": "Use fz.run.",
    # processes with a job each would join one group, and mix their clips
    "shard": "A batch's processes do a job each. Use torchrun -m fz.run.",
}
OWN = ("--out", "--dry-run", "--clip-model", "--clip", "--edit-masks", "--debug")


def build_parser(numbers: Sequence[int] = ()) -> argparse.ArgumentParser:
    parser = run_parser(numbers, of_miniature())
    for action in parser._actions:  # argparse has no public list
        if action.dest in OF_ONE_RUN:
            action.help = argparse.SUPPRESS
        if "--clip-model" in action.option_strings:
            action.help = MEASURED_BY
    for group in parser._action_groups:
        if group.title == "many settings":
            group.title = "measuring"
    parser.prog, parser.description, parser.epilog = "python -m fz.batch", DESCRIPTION, EPILOG
    parser.usage = "%(prog)s JOBS [flags]"
    parser.add_argument("jobs", metavar="JOBS", help="a YAML or CSV, or a folder")
    parser.add_argument(
        "--edit-masks", action="store_true", help="FiVE's masks are where clips are edited, too, not only measured"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    goes_on = "Files that are there are whole; the same command goes on with the jobs that are left."
    return answered(lambda: answer(argv), goes_on, argv=argv)


def answer(argv: list[str]) -> None:
    argv = joined(argv)
    numbers = sorted({int(found[1]) for a in argv if (found := re.match(r"--[a-z-]+\.(\d{1,4})(?:=|$)", a))})
    parser = build_parser(numbers)
    given, rest = parser.parse_known_args(argv)
    if rest:
        raise FzError(unknown(rest, parser))
    for name, do in OF_ONE_RUN.items():
        if getattr(given, name, None):
            raise FzError(f"batch: got --{name.replace('_', '-')}, which is about one run. {do}")
    jobs = read_jobs(given.jobs, of_runs(argv, parser), getattr(given, "edit_masks", False))
    out = writable(getattr(given, "out", None) or f"results/{slug(Path(given.jobs).stem, 100) or 'batch'}", "out")
    dry_run, overwrite = getattr(given, "dry_run", False), getattr(given, "overwrite", False)
    clip_model = getattr(given, "clip_model", None)
    check_some(jobs, out)
    models_of({"clip_model": clip_model})
    # torch takes seconds to import: all mistakes above need none of it
    from fz.progress import bars
    from fz.queue import Place, Queue
    from fz.results.batch import text_table, write_batch

    place = Place.of_environment()
    queue = Queue(jobs, out, place, bars(getattr(given, "verbose", False)), clip_model)
    if dry_run:
        if place.rank == 0:
            queue.check_folder(overwrite)
            say_checked(queue.check())
        return
    queue.start(overwrite)
    queue.work()
    rows = write_batch(out, jobs)
    if place.rank == 0:
        print(text_table(rows))
        print(f"in {out}/batch.csv, .json and .html")
        failed = [row["job"] for row in rows if row["status"] == "failed"]
        if failed:
            raise FzError(f"batch: {len(failed)} of {len(jobs)} jobs failed; their lines are in {out}/batch.csv.")


def check_some(jobs: Sequence[Job], out: Path) -> None:
    """Raise FzError where no job can be run."""
    lines = []
    for job in jobs:
        try:
            job.settings(out)
            return
        except FzError as error:
            lines.append(str(error))
    raise FzError(f"jobs: none of {len(jobs)} can be run. The first: {lines[0]}")


def say_checked(found: Sequence[tuple[str, str | None]]) -> None:
    for name, line in found:
        print(f"{name}: {line or 'fine'}")
    wrong = sum(line is not None for _, line in found)
    if wrong:
        raise FzError(f"batch: {wrong} of {len(found)} jobs cannot be run as they are. Their lines are above.")
    print(f"dry run: {len(found)} jobs are fine; nothing was computed")


def of_runs(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The flags of fz.run among these, which the parser has read without a complaint."""
    out: list[str] = []
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            break  # only JOBS follows
        if not arg.startswith("--"):
            continue  # JOBS
        name, equals, _ = arg.partition("=")
        action = parser._option_string_actions[name]  # argparse has no public list
        words = [arg]
        if not equals and action.nargs is None:
            words.append(rest.pop(0))
        while action.nargs == "+" and not equals and rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        if name not in OWN:
            out += words
    return out


if __name__ == "__main__":
    leave(main())
