"""What does each part of `--fast` cost, and what does it gain? `python -m bench.pareto --clips 64` (the miniature)

Printed and drawn: seconds of a core and figures of held-out clips, and the difference to exact clip by clip with its
95% interval. A measurement that was stopped goes on.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.pareto_ways import EXACT, WAYS
from fz import mini
from fz.mini.setup import Setup
from fz.results.lock import claimed
from fz.settings.place import writable
from fz.settings.texts import multiple, one_of, whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.pareto", description=first_sentence(__doc__))
    parser.add_argument("--clips", type=whole(1), default=64)
    parser.add_argument("--first", type=whole(0), default=0, metavar="I", help="begin with the I-th clip")
    parser.add_argument("--frames", type=whole(1), default=Setup.frames)
    parser.add_argument("--size", type=multiple(32), default=Setup.size)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), type=one_of(list(WAYS)), metavar="WAY")
    parser.add_argument("--out", type=Path, default=Path("results/pareto"))
    given = parser.parse_args(argv)
    out, checkpoint = writable(given.out, "out"), mini.checkpoint()
    import torch

    from bench.pareto_clips import rows_of, table, write_pareto
    from fz.model.fast_cpu import keep_freed_memory
    from fz.weights.load import load_checkpoint

    torch.set_num_threads(1)
    keep_freed_memory()
    names = list(dict.fromkeys([EXACT, *given.ways]))
    clips = range(given.first, given.first + given.clips)
    with claimed(out):
        rows = rows_of(load_checkpoint(checkpoint), Setup(given.frames, given.size), names, clips, out)
        print(table(rows))
        write_pareto(rows, out)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
