"""What a step of inversion and of editing costs on this machine: `python -m bench.edit` (Stable Diffusion v1.4's
shapes, random weights). How it is measured is in `bench.edit_times`.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.tables import EDIT, checked
from fz.settings.texts import multiple, whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.edit", description=first_sentence(__doc__))
    parser.add_argument("--size", type=multiple(64), default=256)
    parser.add_argument("--frames", type=whole(1), default=8)
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument(
        "--only", default="", metavar="PART", help="only the steps with this in their names, as 'inversion'"
    )
    parser.add_argument("--no-maps", action="store_true", help="leave out the maps way, which is slow and large")
    parser.add_argument("--chunk", type=whole(1), help="frames that the UNet takes at a time")
    parser.add_argument("--per-frame-norm", action="store_true", help="GroupNorm of one frame: whole chunks run alone")
    parser.add_argument("--vae", action="store_true", help="encode and decode the clip too")
    parser.add_argument("--small", action="store_true", help="a small model, to try the command")
    parser.add_argument("--model", action="store_true", help="the cost model only")
    parser.add_argument(
        "--fast", action="store_true", help="a whole edit, exact and with --fast, in place of the steps"
    )
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    given = parser.parse_args(argv)
    given.csv = checked(given.csv, EDIT, "--model" if given.model else "")
    from bench.edit_times import measure_all

    measure_all(given)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
