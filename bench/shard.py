"""How many bytes do processes that share a clip give each other at a step? `python -m bench.shard` prints a table."""

from collections.abc import Sequence

from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    Parser(prog="python -m bench.shard", description=first_sentence(__doc__)).parse_args(argv)
    from bench.shard_bytes import Split, table

    print("512², 32 frames on 4 GPUs, float16: MB a step that all give to others, together\n")
    print(table(Split(32, 4, (64, 64))))


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
