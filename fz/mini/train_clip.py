"""Trains the miniature's CLIP, whose features the metrics compare: `python -m fz.mini.train_clip`, on the pictures of
`fz.mini.train_vae`.

Then the share of held-out pictures that prefer their own caption. Goes on where it was stopped; `python -m
fz.mini.export` ships it.
"""

from collections.abc import Sequence
from pathlib import Path

from fz.mini.setup import STORIES
from fz.results.lock import claimed
from fz.settings.place import writable
from fz.settings.texts import positive, whole
from fz.shell import Parser, answered, first_sentence, leave


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.train_clip", description=first_sentence(__doc__))
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-training", help="where state and log are kept"
    )
    parser.add_argument("--minutes", type=positive, default=25, help="of training in all, with what was done before")
    parser.add_argument("--stories", type=whole(12), default=STORIES, help="drawn if there are no pictures yet")
    parser.add_argument("--threads", type=whole(1), default=1)
    given = parser.parse_args(argv)
    state = writable(given.state, "state")
    import torch

    from fz.mini.clip_training import retrieval, train
    from fz.mini.vae_training import pictures
    from fz.model.fast_cpu import keep_freed_memory

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    with claimed(state, "state"):
        clip = train(state, *pictures(state, given.stories), given.minutes)
    for size in (64, 128):
        found = ", ".join(f"{name} {value:.1%}" for name, value in retrieval(clip, size=size).items())
        print(f"held-out pictures of {size} px: {found}")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
