"""Fused attention at Stable Diffusion v1.4's sites, by every way: `python -m bench.attention`.

`--static` prints and writes the roofline page instead; what is measured, and how, is in `bench.attention_times`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.tables import ATTENTION, checked
from fz.settings.texts import whole
from fz.shell import Parser, answered, first_sentence, leave


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench.attention", description=first_sentence(__doc__))
    parser.add_argument("--size", type=whole(1), help="pixels a side (256; 512 with --static)")
    parser.add_argument("--frames", type=whole(1), default=8)
    parser.add_argument("--anchors", type=whole(1), default=2, help="frames whose keys a frame reads")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp32")
    parser.add_argument("--threads", type=whole(1), help="as PyTorch has it by default")
    parser.add_argument("--rounds", type=whole(1), default=7)
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    parser.add_argument("--static", action="store_true", help="print and write the roofline page; nothing is run")
    return parser


def answer(argv: Sequence[str] | None) -> None:
    given = build_parser().parse_args(argv)
    given.size = given.size or (512 if given.static else 256)
    given.csv = checked(given.csv, ATTENTION, "--static" if given.static else "")
    if given.static:
        from bench.roofline_page import write

        print(write(given.size, given.frames, given.anchors))
    else:
        from bench.attention_times import run

        run(given)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
