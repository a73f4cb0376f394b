"""Measures the miniature, and the editor on it, on many held-out stories: `python -m fz.mini.evaluate --processes 2`.

One JSON file for each picture and clip, so that an evaluation that was stopped goes on and a second one changes
nothing; then `fz.mini.bars`' table. What the figures are is in `fz.mini.figures`.
"""

from collections.abc import Sequence
from pathlib import Path

from fz import mini
from fz.errors import FzError
from fz.mini.setup import Setup
from fz.results.lock import claimed
from fz.settings.config import FUSES
from fz.settings.place import writable
from fz.settings.texts import multiple, number, whole
from fz.shell import Parser, answered, first_sentence, leave
from fz.weights.hub import models_of


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.evaluate", description=first_sentence(__doc__))
    parser.add_argument("--pictures", type=whole(0), default=256, help="sampled from captions of one thing")
    parser.add_argument("--two", type=whole(0), default=128, help="pictures sampled from captions of two things")
    parser.add_argument("--clips", type=whole(0), default=64, help="edited: six edits and two reconstructions each")
    parser.add_argument(
        "--ablations", type=whole(0), default=32, help="clips edited without parts of the method: six edits each"
    )
    parser.add_argument("--removals", type=whole(0), default=64, help="clips from which the thing is removed")
    parser.add_argument("--one-of-two", type=whole(0), default=64, help="clips of two things, one of which is edited")
    parser.add_argument("--control", metavar="PATH", default=None, help="a ControlNet on outlines")
    parser.add_argument("--controlled", type=whole(0), default=0, help="clips edited with it: nine edits each")
    parser.add_argument("--frames", type=whole(1), default=Setup.frames)
    parser.add_argument("--size", type=multiple(32), default=Setup.size, help="side of the pictures")
    parser.add_argument("--steps", type=whole(1), default=Setup.steps, help="of an edit")
    parser.add_argument("--picture-steps", type=whole(1), default=Setup.picture_steps)
    parser.add_argument("--guidance", type=number, default=Setup.guidance)
    parser.add_argument("--fuse", choices=FUSES, default=Setup.fuse, help="as of a run of the miniature")
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--processes", type=whole(1), default=1, help="one core each")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/mini"),
        help="a file a picture or clip; what is there is not done again",
    )
    given = parser.parse_args(argv)
    setup = Setup(given.frames, given.size, given.steps, given.picture_steps, given.guidance, given.fuse)
    counts = {
        "picture": given.pictures,
        "two": given.two,
        "clip": given.clips,
        "removal": given.removals,
        "one of two": given.one_of_two,
        "ablation": given.ablations,
        "control": given.controlled,
    }
    if given.controlled and given.control is None:
        raise FzError(f"controlled: got {given.controlled} clips without a ControlNet, expected one. Pass --control.")
    out, checkpoint = writable(given.out, "out"), mini.checkpoint(given.checkpoint)
    models_of({"checkpoint": checkpoint, "control": given.control})
    from fz.mini.evaluation import evaluate, write_table

    jobs = [(part, i) for part, count in counts.items() for i in range(count)]
    rows = []
    with claimed(out):
        for n, some in enumerate(evaluate(setup, checkpoint, jobs, out, given.processes, given.control), start=1):
            rows += some
            print(f"{n} of {len(jobs)}", end="\r" if n < len(jobs) else "\n", flush=True)
        print(write_table(out / "table.txt", setup, rows), end="")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
