"""`python -m bench.table1`: the paper's Table 1 and ablations on held-out clips of the miniature's world, or on clips
of released configs.

A bench that was stopped goes on and a second run changes nothing; what is done and kept is in `bench.table1_cells`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.table1_config import complete, of_config
from bench.table1_rows import EVERY, methods_of
from fz import mini
from fz.results.lock import claimed
from fz.settings.flags import add_renamed
from fz.settings.place import writable
from fz.settings.texts import multiple, number, whole
from fz.shell import Parser, answered, leave
from fz.weights.hub import models_of


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench.table1", description="The paper's Table 1 and ablations.", allow_abbrev=False)
    parser.add_argument("--clips", type=whole(1), help="held-out clips of the miniature's world; default: 32")
    parser.add_argument(
        "--config",
        action="append",
        metavar="YAML",
        help="instead, a clip of a released config, with its settings; repeatable",
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(EVERY)}; default: all")
    parser.add_argument(
        "--seeds", type=whole(1), default=1, help="editing draws nothing: more than one is for baselines that do"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="default: the miniature")
    by = "CLIP, for Tem-Con and Frame-Acc; default: the miniature's for its clips; 'none'"
    add_renamed(parser, "--clip-model", "--clip", metavar="PATH", help=by)
    parser.add_argument("--tokenizer", metavar="DIR", help="for a CLIP that has none")
    parser.add_argument("--frames", type=whole(1), help="default: 8, or a config's")
    parser.add_argument("--size", type=multiple(32), help=f"side of the pictures; default: {mini.SIZE}, or a config's")
    parser.add_argument("--steps", type=whole(1), help="default: 50, or a config's")
    parser.add_argument("--guidance", type=number)
    parser.add_argument("--threads", type=whole(1))
    parser.add_argument("--processes", type=whole(1), default=1, help="clips at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("results/table1"))
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    return parser


def answer(argv: Sequence[str] | None) -> None:
    given = build_parser().parse_args(argv)
    complete(given)
    given.out = writable(given.out, "out")
    # all that can be wrong and is known before torch is imported, which takes seconds
    methods_of(given.methods)
    for config in given.config or ():
        models_of(vars(of_config(config, given)))
    models_of({**vars(given), "checkpoint": mini.checkpoint(given.checkpoint)})
    from bench.table1_cells import bench

    with claimed(given.out):
        print(bench(given), end="")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), "The same command goes on from the last cell.", argv=argv)


if __name__ == "__main__":
    leave(main())
