"""Measures folders that `fz.run` wrote: `python -m fz.evaluate RESULTS --clip-model PATH` prints a table, and writes
JSON and CSV.

Without --clip-model, runs of the miniature are measured by the miniature's CLIP, others by what pixels tell. Without
--truth, --masks or --flow the run's own blend masks stand for the edited region and motion is estimated on the source
clip; the rows say which.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from fz.results.claim import finished
from fz.settings.flags import add_clip_model
from fz.settings.idle import check_clip_model
from fz.settings.place import expanded
from fz.shell import Parser, answered, first_sentence, leave
from fz.weights.hub import models_of


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m fz.evaluate", description=first_sentence(__doc__), allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders that python -m fz.run wrote")
    add_clip_model(parser)
    parser.add_argument("--truth", metavar="DIR", help="frames that the edit should be")
    parser.add_argument("--masks", metavar="DIR", help="pictures that are white where the edit should be")
    parser.add_argument(
        "--flow", metavar="NPY", help="the source's motion, (F - 1, H, W, 2) pixels to the next frame; else estimated"
    )
    parser.add_argument(
        "--out", metavar="NAME", help="write all rows to NAME.json and NAME.csv (default: each beside its results)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that are no evaluation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(list(sys.argv[1:] if argv is None else argv)), argv=argv)


def answer(argv: list[str]) -> None:
    given = build_parser().parse_args(argv)
    check_clip_model(given)
    folders = [expanded(folder, "results") for folder in given.results]
    # torch takes seconds to import: --help needs none of it, nor a folder that is no run's
    for folder in folders:
        finished(folder)
    models_of(vars(given))
    from fz.metrics.measure import explained, table
    from fz.results.beside import EVALUATION, beside
    from fz.results.measured import clip_for, measure_folder, read_truth
    from fz.results.rows import check_replaceable, write_rows

    # before minutes of measuring
    outs = [expanded(given.out, "out")] if given.out is not None else [folder / "evaluation" for folder in folders]
    for out in outs:
        check_replaceable(out, given.overwrite)
    truth = read_truth(given.truth, given.masks, given.flow)
    measured = [
        measure_folder(folder, clip_for(folder, given.clip_model, given.tokenizer), truth) for folder in folders
    ]
    rows = [row for found in measured for row in found]
    print("\n".join([table(rows), *(f"  {line}" for line in explained(rows))]))
    for out, found in zip(outs, [rows] if given.out else measured, strict=True):
        with contextlib.nullcontext() if given.out else beside(out.parent, *EVALUATION):
            write_rows(out, found)
        print(f"in {out}.json and {out}.csv")


if __name__ == "__main__":
    leave(main())
