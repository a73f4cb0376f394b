"""Are the kernels right on this GPU? `python -m bench.gpu_attention`: all comparisons in small, for tools that watch a
kernel's memory; wrong ones are printed, and end with 1.
"""

from collections.abc import Sequence

from bench.gpus import need_triton
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    Parser(prog="python -m bench.gpu_attention", description=first_sentence(__doc__)).parse_args(argv)
    need_triton()
    from bench.gpu_kernels import check_small

    rows = check_small()
    wrong = [row["case"] for row in rows if not row["right"]]
    print(f"{len(rows)} cases, wrong: {', '.join(wrong) or 'none'}")
    if wrong:
        raise SystemExit(1)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
