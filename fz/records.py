"""JSON files that fz itself wrote, read again: checked against a schema, since anyone may have changed them since.

A schema is a type (numbers are finite, and no switches), a tuple (any of them), a set (one of its values), a list of
one schema (each entry), a dictionary (fields that have to be there, with '?' at the end of a name those that may),
`Each` (each value of a dictionary) or a function that says whether a value fits.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Schema = Any
NUMBER = (int, float)


@dataclass(frozen=True)
class Each:
    """A dictionary of any names, whose values fit."""

    schema: Schema


def read(path: Path, schema: Schema) -> Any | None:
    """The file's content; None where there is no such file, it is no JSON, or it does not fit the schema."""
    try:
        # a pipe would be waited for, a device has no end
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return content if fits(content, schema) else None
    except (OSError, ValueError, RecursionError):
        return None


def fits(value: Any, schema: Schema) -> bool:
    """Does the value have the schema's form?"""
    if isinstance(schema, tuple):
        return any(fits(value, one) for one in schema)
    if isinstance(schema, (set, frozenset)):
        return isinstance(value, (str, int)) and value in schema
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(entry, schema[0]) for entry in value)
    if isinstance(schema, Each):
        return isinstance(value, dict) and all(fits(entry, schema.schema) for entry in value.values())
    if isinstance(schema, dict):
        return isinstance(value, dict) and all(
            fits(value[name.removesuffix("?")], one) if name.removesuffix("?") in value else name.endswith("?")
            for name, one in schema.items()
        )
    if schema is None:
        return value is None
    if isinstance(schema, type):
        return is_of(value, schema)
    return bool(schema(value))


def is_of(value: Any, kind: type) -> bool:
    if kind in NUMBER:
        # a whole number that no float holds is none that fz wrote
        sound = isinstance(value, kind) and not isinstance(value, bool)
        return sound and (abs(value) < 2**63 if kind is int else math.isfinite(value))
    return isinstance(value, kind)


def within(least: float, most: float) -> Callable[[Any], bool]:
    """A schema: a number from `least` to `most`."""
    return lambda value: fits(value, NUMBER) and least <= value <= most
