"""What all commands share: a parser whose mistakes are one line, and how an error becomes a line and an exit code.

Exit codes: 0 done, 1 a bug, 2 something that the user can put right, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from fz.errors import FzError, suggest

MEMORY = (
    "out of memory. Use fewer --frames, a smaller --size, --chunk 8, --store recompute, or --dtype float16 on a GPU."
)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FzError(message.removeprefix("argument "))


def unknown(rest: list[str], parser: argparse.ArgumentParser) -> str:
    for arg in rest:
        if arg.startswith("-"):
            name = arg.partition("=")[0]
            known = list(parser._option_string_actions)  # argparse has no public list
            return f"unknown flag {name}.{suggest(name, known)} --help lists all."
    return f"got {rest[0]!r} without a flag, expected flags only. Put sentences in quotes."


def answered(work: Callable[[], object], goes_on: str = "", debug: bool = False) -> int:
    """Do a command's work and return its exit code; what stops it is said in one line.

    goes_on: what 'interrupted.' is followed by. debug: errors are raised.
    """
    try:
        work()
        return 0
    except SystemExit as stop:  # argparse's --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        say_error(f"interrupted. {goes_on}".rstrip())
        return 130
    except Exception as error:
        if debug:
            raise
        line, code = explain(error)
        say_error(line)
        return code


def explain(error: Exception) -> tuple[str, int]:
    """(one line for the user, exit code)."""
    text = " ".join(str(error).split())
    if isinstance(error, FzError):
        return text, 2
    # torch: OutOfMemoryError on GPUs, a RuntimeError of the allocator on the CPU
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
        "storage size calculation overflowed",
    )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text.lower() for sign in signs)
    ):
        return MEMORY, 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Expected a file or folder that can be used, and space on the disk.", 2
    return f"{type(error).__name__}: {text[:300]} - this is a bug; --debug shows the traceback.", 1


def say_error(line: str) -> None:
    print(f"fz: {line}", file=sys.stderr, flush=True)
