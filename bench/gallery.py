"""Makes the README's gallery: `python -m bench.gallery` edits held-out clips of the miniature's world and shows, of
each kind of edit, the median one; gifs of source, edit and mask, and gallery.json with every candidate's figures.
"""

from collections.abc import Sequence
from pathlib import Path

from fz.errors import FzError
from fz.results.lock import claimed
from fz.settings.place import writable
from fz.settings.texts import one_of, whole
from fz.shell import Parser, answered, first_sentence, leave

NAMES = ("attribute", "shape", "style", "background", "removal", "two-objects", "one-image")


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.gallery", description=first_sentence(__doc__))
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--candidates", type=whole(1), default=5, help="clips of each kind of edit, an odd number")
    parser.add_argument("--only", nargs="+", type=one_of(NAMES), metavar="KIND", default=NAMES,
                        help=f"of {', '.join(NAMES)}; default: all")  # fmt: skip
    parser.add_argument("--threads", type=whole(1), default=None)
    given = parser.parse_args(argv)
    if given.candidates % 2 == 0:
        raise FzError(f"candidates: got {given.candidates}, expected an odd number: the middle one is shown.")
    out = writable(given.out, "out")
    import torch

    from bench.gallery_clips import make_all

    if given.threads:
        torch.set_num_threads(given.threads)
    with claimed(out):
        make_all(out, given.only, given.candidates)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
