"""Processes that a test started, and the commands that there are."""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands() -> Iterator[str]:
    """The modules that `python -m` runs: those that end in a call of their `main`."""
    for file in sorted([*ROOT.glob("fz/**/*.py"), *ROOT.glob("bench/**/*.py")]):
        last = ast.parse(file.read_text(encoding="utf-8")).body[-1:]
        if last and isinstance(last[0], ast.If) and "__main__" in ast.unparse(last[0].test):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts)


COMMANDS = tuple(commands())


def alive(group):
    """Processes of a group that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat.parent.name] if int(own) == group and state != "Z" else []
    return found
