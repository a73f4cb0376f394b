"""The command line, `python -m fz.sweep FLAGS... --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3`: many settings of
an edit from one inversion, one sheet.

It is `fz.run`, which then has to be told what to sweep.
"""

import argparse
import sys
from collections.abc import Sequence

from fz import run
from fz.shell import answered, leave, say_error

DESCRIPTION = (
    "Edit a clip in many ways, from one inversion, and show them on one sheet with metrics. --sweep says what is "
    "varied; the others are the flags of fz.run."
)
EPILOG = """
example:
  python -m fz.sweep --edit shape --target 'a red boat moving on the sand' \\
      --sweep self_replace=0.2:0.8:0.2 blend_th=0.2,0.3,none

Flags marked * count for every target; add .N to mean target N, from 0: --threshold.1 0.3
"""


def build_parser() -> argparse.ArgumentParser:
    from fz.settings.flags import build_parser
    from fz.settings.parse import of_miniature

    parser = build_parser(bundled=of_miniature())
    parser.prog, parser.description, parser.epilog = "python -m fz.sweep", DESCRIPTION, EPILOG
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        return answered(lambda: build_parser().print_help(), argv=argv)
    computes_nothing = {"--version", "--list-words"} & set(argv)
    if not computes_nothing and not any(arg.partition("=")[0] == "--sweep" for arg in argv):
        say_error("sweep: got no --sweep, expected as --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3.")
        return 2
    return run.main(argv)


if __name__ == "__main__":
    leave(main())
