"""The command line, `python -m fz.evaluate RESULTS... --clip-model PATH`: measure folders that `fz.run` wrote; a table,
JSON and CSV.

Without --clip-model, runs of the miniature are measured by the miniature's CLIP, others by what pixels tell. Without
--truth, --masks or --flow the run's own blend masks stand for the edited region and motion is estimated on the source
clip; the rows say which.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fz.settings.flags import add_clip_model
from fz.shell import Parser, answered


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m fz.evaluate", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders that python -m fz.run wrote")
    add_clip_model(parser)
    parser.add_argument("--truth", metavar="DIR", help="frames that the edit should be")
    parser.add_argument("--masks", metavar="DIR", help="pictures that are white where the edit should be")
    parser.add_argument(
        "--flow", metavar="NPY", help="the source's motion, (F - 1, H, W, 2) pixels to the next frame; else estimated"
    )
    parser.add_argument(
        "--out", metavar="NAME", default="evaluation", help="write NAME.json and NAME.csv (default: evaluation)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(list(sys.argv[1:] if argv is None else argv)))


def answer(argv: list[str]) -> None:
    given = build_parser().parse_args(argv)
    # torch takes seconds to import: --help needs none of it
    from fz.clips.media import atomic
    from fz.metrics.measure import as_csv, table
    from fz.results.measured import clip_for, measure_folder, read_truth

    truth = read_truth(given.truth, given.masks, given.flow)
    folders = [Path(folder).expanduser() for folder in given.results]
    rows = [
        row
        for folder in folders
        for row in measure_folder(folder, clip_for(folder, given.clip_model, given.tokenizer), truth)
    ]
    print(table(rows))
    for suffix, text in ((".json", json.dumps(rows, indent=1) + "\n"), (".csv", as_csv(rows))):
        with atomic(Path(f"{given.out}{suffix}")) as part:
            part.write_text(text, encoding="utf-8")
    print(f"in {given.out}.json and {given.out}.csv")


if __name__ == "__main__":
    sys.exit(main())
