"""The command line, `python -m fz.sweep FLAGS... --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3`: many settings of
an edit from one inversion, one sheet.

It is `fz.run`, which then has to be told what to sweep.
"""

import sys
from collections.abc import Sequence

from fz import run
from fz.shell import leave, say_error


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" not in argv and not any(arg.partition("=")[0] == "--sweep" for arg in argv):
        say_error("sweep: got no --sweep, expected as --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3.")
        return 2
    return run.main(argv)


if __name__ == "__main__":
    leave(main())
