"""How do errors name settings to a Python caller? By its arguments, where the command line has flags."""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from fz.errors import FzError

# what Python calls otherwise than the command line does
OTHERWISE = {
    "overwrite": "overwrite=True",
    "refine": "align='refine'",
    "replace": "align='replace'",
    "per-frame-norm": "clip_norm=False",
    "least-sc-channel": "least_channels",
    "invert-without-control": "control_inverts=False",
    "list-words": "fz.mini.world.vocabulary()",
}
FLAG = re.compile(
    r"--([a-z]+(?:-[a-z]+)*)(?: ('[^']*'|\d+x\d+|\d+(?:\.\d+)?|b?float\d+|all|recompute or disk)(?![\w']))?"
)
Given, Returned = ParamSpec("Given"), TypeVar("Returned")


def spoken(**names: str) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]:
    """A decorator: errors name a Python caller's arguments, where the command line has flags. names: of those that this
    function calls otherwise.
    """

    def of(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        @functools.wraps(function)
        def call(*args: Given.args, **settings: Given.kwargs) -> Returned:
            try:
                return function(*args, **settings)
            except FzError as error:
                error.args = (in_python(str(error), names),)
                raise

        return call

    return of


def in_python(line: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """`--frames 8` as `frames=8`, `--chunk` as `chunk`, and what the line begins with."""

    def argument(found: re.Match[str]) -> str:
        flag, value = found.groups()
        name = {**OTHERWISE, **names}.get(flag, flag.replace("-", "_"))
        if value is None or "=" in name:
            return found[0].replace(f"--{flag}", name)
        if value == "recompute or disk":  # which is the command line's
            return f"{name}='recompute'"
        sides = re.fullmatch(r"(\d+)x(\d+)", value)
        texts = {"all": "None"} | ({value: f"({sides[1]}, {sides[2]})"} if sides else {})
        return f"{name}={texts.get(value, repr(value) if value[0] in 'bf' else value)}"

    first, colon, rest = FLAG.sub(argument, line).partition(":")
    return f"{names.get(first, first)}{colon}{rest}"
