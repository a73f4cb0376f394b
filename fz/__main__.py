"""The command line, `fz COMMAND …` or `python -m fz COMMAND …`: which command is meant? Each is a `python -m
fz.COMMAND`, too.

Nothing is imported but the command that is run: `fz --help` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "run": "edit a clip, or without flags the bundled example",
    "tune": "tune a checkpoint on a clip, for edits of shape",
    "prompt": "show what an edit will do to each word, before it is run",
    "sweep": "many settings of an edit from one inversion, on one sheet",
    "web": "a page to edit with, in the browser",
    "batch": "many clips, a benchmark, many GPUs: one table of all results",
    "evaluate": "measure folders of results",
    "report": "write a page of a folder of results",
}
EXAMPLE = "fz run --source 'a red car moving on the sand' --target 'a blue car moving on the sand'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        from fz.completion import complete

        complete()
    if argv and argv[0] in COMMANDS:
        return import_module(f"fz.{argv[0]}").main(argv[1:])
    from fz.shell import answered

    return answered(lambda: answer(argv), argv=argv)


def answer(argv: list[str]) -> None:
    """What no command is asked for."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
    elif argv[0] == "--version":
        from fz import __version__

        print(f"fz {__version__}")
    else:
        from fz.errors import FzError, suggest

        known = ", ".join(COMMANDS)
        raise FzError(f"unknown command {argv[0]!r}, expected one of {known}.{suggest(argv[0], COMMANDS)}")


def usage() -> str:
    lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fz COMMAND [flags]",
            "",
            "Edit videos by text: FateZero (arXiv 2303.09535) on any Stable Diffusion v1 checkpoint.",
            "",
            *lines,
            "",
            "fz COMMAND --help lists a command's flags. As in:",
            f"  {EXAMPLE}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
