"""The command line, `python -m fz.prompt --source TEXT --target TEXT [flags of fz.run]`: what an edit will do to each
word, before anything is run.

Tokens, which words correspond, and how long each word of the target has the source's attention. With --video also where
the source's words are: their attention over a few inversion steps (--map-steps, default 4) and the masks made of it, as
pictures. --json prints a line of JSON for each edit instead (`fz.prompts.explain.as_json` says what is in it); what
else is said is then on stderr.
"""

import argparse
import dataclasses
import functools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fz.errors import FzError
from fz.settings.config import Settings
from fz.settings.effect import fused_sentence
from fz.settings.idle import alone
from fz.settings.place import slug, writable
from fz.shell import answered, leave

if TYPE_CHECKING:
    from fz.results.words import WordMaps

MAP_STEPS = 4
DESCRIPTION = (
    "Show what an edit will do to each word, before it is run: tokens, which words correspond, how long each has the "
    "source's attention. With --video also where the source's words are, as pictures in --out. Flags of fz.run that "
    "concern words count; the others are checked and change nothing."
)


def build_parser() -> argparse.ArgumentParser:
    """fz.run's flags, and what is this command's own."""
    from fz.settings.flags import build_parser
    from fz.settings.parse import of_miniature

    parser = build_parser(bundled=of_miniature())
    parser.prog, parser.description, parser.epilog = "python -m fz.prompt", textwrap.fill(DESCRIPTION, 100), None
    group = parser.add_argument_group("of fz.prompt alone")
    group.add_argument(
        "--json",
        action="store_true",
        help="a line of JSON for each edit instead of text; what else is said is on stderr",
    )
    group.add_argument(
        "--map-steps", metavar="N", help=f"inversion steps over which words are shown (default: {MAP_STEPS})"
    )
    return parser


def shows_pictures(argv: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--video" for word in argv)


def split(argv: Sequence[str]) -> tuple[list[str], int]:
    """(flags of fz.run, value of --map-steps)."""
    rest, steps, given, words = [], str(MAP_STEPS), False, iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--map-steps":
            steps, given = value if equals else next(words, ""), True
        else:
            rest.append(word)
    if not re.fullmatch(r"\d{1,4}", steps, re.ASCII) or not 1 <= int(steps) <= 1000:
        raise FzError(f"--map-steps: got {steps!r}, expected a whole number from 1 to 1000; a few are enough.")
    if given and not shows_pictures(rest):
        raise FzError(f"{alone('map-steps', '--video')}. Pass that, or leave it out.")
    return rest, int(steps)


def word_maps(settings: Settings, map_steps: int, say: Callable[[str], None]) -> "WordMaps":
    """Where the source's words are, by an inversion of so many steps."""
    from fz.attention import MAP_STRIDE
    from fz.editor import Editor
    from fz.progress import Journal
    from fz.results.words import WordMaps
    from fz.stages import read_video

    journal = Journal()
    editor = Editor(settings, journal)
    for line in journal.notes:
        say(line)
    video = read_video(settings, editor, say)
    inversion = editor.invert(video, settings.source, steps=map_steps, store="recompute")
    size = tuple(side // MAP_STRIDE for side in inversion.latent_size)
    return WordMaps(video.frames, inversion.averaged_maps(), size)


def answer(argv: list[str]) -> None:
    # torch takes seconds to import: --help needs none of it
    from fz.settings.parse import parse

    as_lines = "--json" in argv
    rest, map_steps = split([word for word in argv if word != "--json"])
    settings = parse([*rest, "--list-words"]).settings
    if settings is None:
        raise FzError("prompt: got no sentences, expected --source 'a red car on sand' --target 'a blue car on sand'.")
    from fz.preflight import check_clip, text_of

    pictured = bool(settings.clip.path) and shows_pictures(rest)
    if pictured:
        # before torch is imported, which takes seconds
        check_clip(settings.clip)
        name = f"prompt-{slug(Path(settings.clip.path).stem, 64) or 'clip'}"
        folder = writable(settings.out or Path("results") / name, "out")
    # all is of the sentence whose attention is fused
    settings = dataclasses.replace(settings, source=fused_sentence(settings))
    text, steps = text_of(settings), settings.steps
    source = text.tokens(settings.source)
    targets = [text.tokens(edit.target) for edit in settings.edits]
    from fz.baselines import METHODS
    from fz.prompts.describe import describe, numbers
    from fz.prompts.explain import as_json
    from fz.prompts.plan import Plan, plan_edit
    from fz.results.words import check_pictures, picture_names, write_pictures
    from fz.stages import emphasis, idle_embeddings

    fuses = METHODS[settings.method].fuses
    plans = [
        plan_edit(edit, source, target, steps, name=f"edit {i}")
        if fuses
        else Plan(None, (f"method {settings.method} fuses nothing",))
        for i, (edit, target) in enumerate(zip(settings.edits, targets, strict=True))
    ]
    if pictured:
        check_pictures(folder, picture_names(source, plans), settings.overwrite)
    # a program reads JSON alone on stdout
    say = functools.partial(print, file=sys.stderr if as_lines else sys.stdout, flush=True)
    for line in (*emphasis(settings), *idle_embeddings(settings, text)):
        say(line)
    if as_lines:
        for edit, plan, target in zip(settings.edits, plans, targets, strict=True):
            print(json.dumps(as_json(edit, plan, target, steps)))
    else:
        print(f"source: {settings.source!r}")
        for word in source.words:
            print(f"  {word.text}  (tokens {numbers(word.positions)})")
        for i, (edit, plan, target) in enumerate(zip(settings.edits, plans, targets, strict=True)):
            print(f"\nedit {i}: " + "\n".join(describe(edit, plan, source, target, steps)))
        if pictured:
            print()
    if pictured:
        pictures = write_pictures(folder, settings.edits, plans, source, word_maps(settings, map_steps, say))
        say(
            f"the source's words over {map_steps} inversion steps: {len(pictures)} pictures in {folder}, as "
            f"{pictures[-1].name}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"--help", "-h"} & set(argv):
        return answered(lambda: print(build_parser().format_help(), end=""), argv=argv)
    return answered(lambda: answer(argv), argv=argv)


if __name__ == "__main__":
    leave(main())
