"""Which clips does `bench.table1` take, with which settings? Without torch: mistakes are answered at once."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fz import mini
from fz.errors import FzError
from fz.settings.config import Settings
from fz.settings.parse import parse

# of held-out clips, where the command line says nothing; a config says them itself
HELD_OUT = {"clips": 32, "frames": 8, "size": mini.SIZE, "steps": 50, "guidance": mini.DEFAULTS["guidance"]}
# flags that go before a config's own
OVER = ("checkpoint", "frames", "size", "steps", "guidance", "threads")


def complete(given: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and fill in what was not given."""
    if given.processes > 1:
        if given.threads not in (None, 1):
            raise FzError(
                f"threads: got {given.threads} beside --processes {given.processes}, which have one each. Leave it out."
            )
        given.threads = 1
    if not given.config:
        for name, value in HELD_OUT.items():
            if getattr(given, name) is None:
                setattr(given, name, value)
        return
    if given.clips is not None:
        raise FzError(f"clips: got {given.clips} beside --config, whose clips are taken. Leave out one.")
    named: dict[str, str] = {}
    for config in given.config:
        # cells and runs are called so, and a system that knows no case takes two such names for one
        name = Path(config).stem.lower()
        if name in named:
            raise FzError(
                f"config: {named[name]} and {config} have one name, expected one for each. Rename one of them."
            )
        named[name] = config


def of_config(config: str, given: argparse.Namespace) -> Settings:
    """As `fz.run --config` reads it, with the command line's flags. Raises FzError."""
    flags = [(f"--{name}", str(value)) for name in OVER if (value := getattr(given, name)) is not None]
    return parse(["--config", config, *(part for flag in flags for part in flag)]).settings


def in_words(given: argparse.Namespace) -> str:
    """Steps, guidance, frames and size of the clips, for the table's heading."""
    clips: Iterable[Mapping[str, Any]] = [vars(given)]
    if given.config:
        clips = [
            {**vars(s), "frames": s.clip.frames, "size": s.clip.size}
            for s in (of_config(config, given) for config in given.config)
        ]

    def of(name: str) -> str:
        return " or ".join(dict.fromkeys(shown(name, clip[name]) for clip in clips))

    return f"{of('frames')} frames, {of('size')} px, {of('steps')} steps, guidance {of('guidance')}"


def shown(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "frames" else "own"
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
