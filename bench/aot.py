"""What do the Triton kernels compile to for GPUs that are not here? `python -m bench.aot [CAPABILITY]`, a line for each
binary.
"""

from collections.abc import Sequence

from bench.gpus import NVIDIA, need_triton
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.aot", description=first_sentence(__doc__))
    parser.add_argument("capability", type=int, nargs="?", default=90, choices=NVIDIA)
    given = parser.parse_args(argv)
    need_triton()
    from bench.aot_binaries import print_table

    print_table(given.capability)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
