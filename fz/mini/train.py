"""Trains the miniature's UNet and text encoder: `python -m fz.mini.train --state DIR`, for as long as it is let, on a
CPU or a GPU.

It goes on, to the bit, from DIR, and may be stopped at any time. `python -m fz.mini.export` writes the averages into a
checkpoint folder.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from fz import mini
from fz.results.lock import claimed
from fz.settings.device import check_device
from fz.settings.place import writable
from fz.settings.texts import fraction, positive, whole
from fz.shell import Parser, answered, first_sentence, leave
from fz.weights.hub import models_of


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.train", description=first_sentence(__doc__))
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-training", help="where state and log are kept"
    )
    parser.add_argument(
        "--start", default=None, help="a new training's checkpoint, or 'anew'; default: the bundled miniature"
    )
    parser.add_argument("--minutes", type=positive, default=60, help="of this run; the next one goes on")
    parser.add_argument(
        "--layouts",
        type=fraction,
        default=None,
        help="of batches that teach which of two things is where, 0 to 1; default: 0.25",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=whole(1), default=1, help="of training on a CPU")
    parser.add_argument(
        "--processes", type=whole(1), default=None, help="that draw; default: one on a CPU, all cores with a GPU"
    )
    given = parser.parse_args(argv)
    state, start = writable(given.state, "state"), mini.checkpoint(given.start)
    check_device(given.device)
    if start != "anew":
        models_of({"checkpoint": start})
    import torch

    from fz.memory.machine import pick_device
    from fz.mini.shards import drawing
    from fz.mini.training import LAYOUTS, start_anew, start_from, train
    from fz.model.fast_cpu import keep_freed_memory

    torch.set_num_threads(given.threads)
    keep_freed_memory()
    device = pick_device(given.device).type
    with claimed(state, "state"):
        begun = start_anew(state) if start == "anew" else start_from(start)
        end = time.monotonic() + 60 * given.minutes
        with drawing(given.processes or (1 if device == "cpu" else os.cpu_count())) as each:
            layouts = LAYOUTS if given.layouts is None else given.layouts
            done = train(state, begun, device, lambda training: time.monotonic() < end, each, layouts)
    print(f"{done.pictures} pictures in {done.steps} steps, {done.seconds / 60:.0f} minutes in all: {state}")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
