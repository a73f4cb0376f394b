"""Trains the network that judges pictures: `python -m fz.mini.measure`; what it sees is `fz.mini.eye`'s question.

Its errors on held-out drawn pictures are printed.
"""

from collections.abc import Sequence
from pathlib import Path

from fz.mini import EYE
from fz.settings.place import writable_file
from fz.settings.texts import whole
from fz.shell import Parser, answered, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.measure", description="Train the network that judges pictures.")
    parser.add_argument(
        "--out", type=Path, required=True, help=f"safetensors file; the bundled one is weights/mini/{EYE.name}"
    )
    parser.add_argument("--stories", type=whole(32), default=6000)
    parser.add_argument("--threads", type=whole(1), default=1)
    given = parser.parse_args(argv)
    out = writable_file(given.out, "out")
    import torch

    from fz.mini.eye import errors, train, write_eye

    torch.set_num_threads(given.threads)
    eye = train(given.stories)
    write_eye(eye, out)
    print(", ".join(f"{name} {value:.1%}" for name, value in errors(eye).items()))


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
