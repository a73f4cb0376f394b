"""The command line, `python -m fz.report FOLDER`: write report.html, one page of a run, into folders that `fz.run`
wrote.

What is on the page is `fz.results.report`'s question.
"""

import argparse
import sys
from collections.abc import Sequence

from fz.results.claim import finished
from fz.settings.flags import add_clip_model
from fz.settings.idle import check_clip_model
from fz.settings.place import expanded
from fz.shell import Parser, answered, leave
from fz.weights.hub import models_of


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m fz.report", description="Write report.html into folders that fz.run wrote.", allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders that python -m fz.run wrote")
    add_clip_model(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(sys.argv[1:] if argv is None else argv), argv=argv)


def answer(argv: Sequence[str]) -> None:
    given = build_parser().parse_args(argv)
    check_clip_model(given)
    folders = [expanded(folder, "results") for folder in given.folders]
    # torch takes seconds to import: --help needs none of it, nor a folder that is no run's
    for folder in folders:
        finished(folder)
    models_of(vars(given))
    from fz.results.measured import clip_for
    from fz.results.report import write_report

    for folder in folders:
        print(write_report(folder, clip_for(folder, given.clip_model, given.tokenizer)))


if __name__ == "__main__":
    leave(main())
