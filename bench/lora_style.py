"""Can a LoRA teach the miniature a style that it does not know? `python -m bench.lora_style --out DIR`

What is drawn, learned and compared is in `bench.lora_clips`.
"""

from collections.abc import Sequence

from fz.results.lock import claimed
from fz.settings.place import writable
from fz.settings.texts import fraction, multiple, positive, whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.lora_style", description=first_sentence(__doc__), allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", required=True)
    parser.add_argument("--style", choices=["painting", "art", "blueprint"], default="painting", help="its words")
    for name, default in (("pictures", 48), ("rank", 8), ("steps", 1200), ("clips", 24), ("frames", 2)):
        parser.add_argument(f"--{name}", type=whole(1), metavar="N", default=default)
    parser.add_argument("--size", type=multiple(32), metavar="N", default=128)
    parser.add_argument("--rate", type=positive, metavar="R", default=2e-3)
    parser.add_argument("--snr-power", type=fraction, metavar="P", default=1.0, help="of fz.tune")
    given = parser.parse_args(argv)
    out = writable(given.out, "out")
    from bench.lora_clips import work

    with claimed(out):
        work(given, out)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
