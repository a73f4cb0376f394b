"""Pictures from sentences, by the miniature or any other checkpoint: `python -m fz.mini.sample 'a blue star on the
grass'`.
"""

from collections.abc import Sequence
from pathlib import Path

from fz import mini
from fz.settings.place import slug, writable_file
from fz.settings.texts import multiple, number, sentence, whole
from fz.shell import Parser, answered, first_sentence, leave
from fz.weights.hub import models_of


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.sample", description=first_sentence(__doc__))
    parser.add_argument("prompt", nargs="+", type=sentence, help="sentences, each in quotes")
    parser.add_argument("--count", type=whole(1), default=4, help="pictures of each")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--steps", type=whole(1), default=50)
    parser.add_argument("--guidance", type=number, default=mini.DEFAULTS["guidance"])
    parser.add_argument("--size", type=multiple(32), default=mini.SIZE, help="side of a picture")
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--out", type=Path, default=None, help="png file; default: results/SENTENCE.png")
    given = parser.parse_args(argv)
    checkpoint, first = mini.checkpoint(given.checkpoint), given.prompt[0]
    usual = Path("results") / f"{slug(first, 60) or 'picture'}.png"
    out = writable_file(usual if given.out is None else given.out, "out")
    models_of({"checkpoint": checkpoint})
    from fz.clips.media import contact_sheet, to_uint8, write_png
    from fz.mini.sampled import sample
    from fz.weights.load import load_checkpoint

    prompts = [p for p in given.prompt for _ in range(given.count)]
    frames = to_uint8(sample(load_checkpoint(checkpoint), prompts, given.seed, given.steps, given.guidance, given.size))
    rows = [frames[i : i + given.count] for i in range(0, len(frames), given.count)]
    write_png(out, contact_sheet(rows, given.prompt))
    print(out)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
