"""The command line, `python -m fz.run`: edit a clip, show what is going on, answer every mistake in one line.

Flags are read in `fz.settings.parse`, the work is `fz.pipeline.run`. Exit codes: 0 done, 1 a bug, 2 something that the
user can put right, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

from fz.errors import FzError
from fz.shell import answered, leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv's, if none is given); returns its exit code. With --debug, errors come with their
    traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    goes_on = "Files that are there are whole; the same command goes on from the last step."
    return answered(lambda: answer(argv), goes_on, argv=argv)


def is_another(argv: list[str]) -> bool:
    """Is this one of several processes of `--shard`, and not the first, which speaks for all?"""
    return "--shard" in argv and os.environ.get("RANK", "0") != "0"


def answer(argv: list[str]) -> None:
    # torch takes seconds to import: inside, so that Ctrl-C is answered then too
    from fz.settings.parse import parse

    try:
        request = parse(argv)
        if request.list_words:
            list_words(request.settings)
            return
        from fz.preflight import check_run
        from fz.results.beside import SWEEP, check_beside
        from fz.settings.place import expanded

        # before torch is imported, which takes seconds
        check_run(request.settings, request.clip_model if request.sweep or request.settings.report else None)
        if request.sweep and request.settings.out:
            check_beside(expanded(request.settings.out, "out"), *SWEEP)
    except FzError:
        if is_another(argv):
            raise SystemExit(2) from None
        raise
    from fz import pipeline
    from fz.checkpoint import choose_clip
    from fz.progress import Progress, bars
    from fz.ranks import Elsewhere

    judges = bool(request.sweep or request.settings.report)
    # before the run: a CLIP that cannot be read costs no minutes
    clip = choose_clip(request.clip_model, miniature=request.settings.checkpoint is None) if judges else None
    try:
        result = pipeline.run(request.settings, Progress() if is_another(argv) else bars(request.verbose))
    except Elsewhere:
        raise SystemExit(2) from None
    if result.out is None:
        return  # a dry run
    if request.sweep:
        from fz.metrics.measure import explained, table
        from fz.results.sheet import write_sweep

        rows = write_sweep(result, request.sweep, clip)
        print("\n".join([table(rows, label="label"), *(f"  {line}" for line in explained(rows))]))
        print(f"in {result.out}/sweep.png, .json and .csv")
    if request.settings.report:
        from fz.results.report import write_report

        print(f"open {write_report(result.out, clip)}")


def list_words(settings) -> None:
    """Print each prompt's words and the places of their tokens; without settings, the words that the miniature
    knows.
    """
    if settings is None:
        known_words()
        return
    from fz.preflight import text_of

    text = text_of(settings)
    for prompt in (settings.source, *(edit.target for edit in settings.edits)):
        tokens = text.tokens(prompt)
        print(f"{prompt!r}: {len(tokens.words)} words")
        for word in tokens.words:
            print(f"  {word.index + 1:3d}  {word.text}  (tokens {', '.join(map(str, word.positions))})")


def known_words() -> None:
    try:
        from fz.mini import world
    except ImportError:
        raise FzError(
            "list-words: no miniature is installed. Pass --checkpoint, --source and --target to see their words."
        ) from None
    print("The miniature knows:")
    for title, names in (
        ("things", world.KINDS),
        ("colours", world.COLOURS),
        ("scenes", world.SCENES),
        ("styles", world.STYLES),
    ):
        print(f"  {title}: {', '.join(names)}")


if __name__ == "__main__":
    leave(main())
