"""Trains one model in several processes: `python -m fz.mini.average DIR DIR`.

Each process trains in a folder of its own, for some minutes; then this gives all of them the mean of what they have
(local SGD, arXiv 1805.09767), and they go on. A folder without a training is given one, which draws other pictures. On
two cores two trainings of one thread each see 1.5 times as many pictures as one of two threads (bench/LOG.md).
"""

from collections.abc import Sequence
from pathlib import Path

from fz.results.lock import claimed
from fz.settings.place import writable
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.average", description=first_sentence(__doc__), allow_abbrev=False)
    parser.add_argument("states", metavar="DIR", nargs="+", type=Path, help="of a training that does not run")
    given = parser.parse_args(argv)
    folders = [writable(folder, "state") for folder in dict.fromkeys(path.absolute() for path in given.states)]
    import contextlib

    from fz.mini.state import average

    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(claimed(folder, "state"))
        pictures = average(folders)
    seen = ", ".join(map(str, pictures))
    print(f"the mean of {len(pictures)} trainings in {len(folders)} folders; pictures seen: {seen}")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
