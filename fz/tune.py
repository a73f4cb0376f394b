"""The command line, `python -m fz.tune --video CLIP --prompt TEXT --out DIR`: tune a Stable Diffusion on one clip, for
edits of shape.

Its flags are in `fz.tuning.settings`, the work is `fz.tuning.run`.
"""

import sys
from collections.abc import Sequence

from fz.shell import answered, leave


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    return answered(lambda: answer(argv), "The same command goes on from the last saved step.", argv=argv)


def answer(argv: Sequence[str]) -> None:
    from fz.tuning.settings import parse

    settings, notes = parse(argv)
    for note in notes:
        print(note, flush=True)
    from fz.preflight import check_tuning

    # before torch is imported, which takes seconds
    check_tuning(settings)
    from fz.tuning.run import tune

    tune(settings, lambda line: print(line, flush=True))


if __name__ == "__main__":
    leave(main())
