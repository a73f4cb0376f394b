"""Trains a small ControlNet on outlines for the miniature: `python -m fz.mini.train_control --state DIR`, on one core.

It goes on, to the bit, from DIR, and `--export OUT` writes the averaged weights in diffusers' layout.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from fz import mini
from fz.results.lock import claimed
from fz.settings.device import check_device
from fz.settings.place import readable, writable
from fz.settings.texts import positive, whole
from fz.shell import Parser, answered, first_sentence, leave
from fz.weights.hub import models_of


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.train_control", description=first_sentence(__doc__))
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-control", help="where state and log are kept"
    )
    parser.add_argument("--checkpoint", default=None, help="what it stands beside; default: the bundled miniature")
    parser.add_argument("--minutes", type=positive, default=60, help="of this run; the next one goes on")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=whole(1), default=1, help="of training on a CPU")
    parser.add_argument(
        "--export", type=Path, metavar="OUT", help="write the averaged weights there, and train nothing"
    )
    given = parser.parse_args(argv)
    if given.export:
        state, out = readable(given.state, "state"), writable(given.export, "export")
        from fz.mini.control_training import export

        export(state, out)
        print(f"{state} -> {out}")
        return
    state, checkpoint = writable(given.state, "state"), mini.checkpoint(given.checkpoint)
    check_device(given.device)
    models_of({"checkpoint": checkpoint})
    import torch

    from fz.memory.machine import pick_device
    from fz.mini.control_training import train
    from fz.mini.shards import drawing
    from fz.model.fast_cpu import keep_freed_memory
    from fz.weights.load import load_checkpoint

    torch.set_num_threads(given.threads)
    keep_freed_memory()
    device = pick_device(given.device).type
    with claimed(state, "state"):
        loaded = load_checkpoint(checkpoint)
        end = time.monotonic() + 60 * given.minutes
        with drawing(1) as each:
            done = train(state, loaded, device, lambda training: time.monotonic() < end, each)
    print(f"{done.pictures} pictures in {done.steps} steps, {done.seconds / 60:.0f} minutes in all: {state}")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
