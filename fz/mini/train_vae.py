"""Trains the miniature's VAE on drawn pictures: `python -m fz.mini.train_vae --state DIR`, then `python -m
fz.mini.train` with that DIR.

Goes on where it was stopped. What it leaves, DIR/vae-final.pt, gives latents of mean 0 and deviation 1.
"""

from collections.abc import Sequence
from pathlib import Path

from fz.mini.setup import STORIES
from fz.results.lock import claimed
from fz.settings.place import writable
from fz.settings.texts import positive, whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.train_vae", description=first_sentence(__doc__))
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-training", help="where state and log are kept"
    )
    parser.add_argument("--stories", type=whole(12), default=STORIES, help="drawn if there are no pictures yet")
    parser.add_argument("--minutes", type=positive, default=15, help="of training in all, with what was done before")
    parser.add_argument("--threads", type=whole(1), default=2)
    given = parser.parse_args(argv)
    state = writable(given.state, "state")
    import torch

    from fz.mini.vae_training import pictures, train_vae, unit_latents
    from fz.model.fast_cpu import keep_freed_memory
    from fz.tensors import write_pt

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    with claimed(state, "state"):
        frames, _ = pictures(state, given.stories)
        vae = train_vae(state, frames, given.minutes)
        unit_latents(vae, frames)
        write_pt(state / "vae-final.pt", vae.state_dict(), "state")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
