"""Puts what training left in its state folder into a checkpoint folder of diffusers' layout, fp16: `python -m
fz.mini.export`.

The averaged weights are taken that training last wrote, so one that still runs can be exported too. The CLIP goes
along as clip/, in transformers' layout, if it has been trained; `--only clip` leaves all else as it is.
"""

from collections.abc import Sequence
from pathlib import Path

from fz.settings.place import readable, writable
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.export", description=first_sentence(__doc__))
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-training", help="the training's folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="checkpoint folder; the bundled miniature is weights/mini"
    )
    parser.add_argument("--only", choices=["clip"], help="this part alone")
    given = parser.parse_args(argv)
    state, out = readable(given.state, "state"), writable(given.out, "out")
    from fz.mini.folder import export, export_clip

    what = "clip" if given.only else export(state, out)
    if given.only or (state / "clip.pt").exists():
        export_clip(state, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{what} -> {out}, {size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
