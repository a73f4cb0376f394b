"""What must each way of fused attention move and compute on four GPUs? `python -m bench.roofline` prints the page and
writes it.
"""

from collections.abc import Sequence

from fz.settings.texts import whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.roofline", description=first_sentence(__doc__))
    parser.add_argument("--size", type=whole(1), default=512, help="pixels a side")
    parser.add_argument("--frames", type=whole(1), default=8)
    parser.add_argument("--anchors", type=whole(1), default=2, help="frames whose keys a frame reads")
    given = parser.parse_args(argv)
    from bench.roofline_page import write

    print(write(given.size, given.frames, given.anchors))


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
