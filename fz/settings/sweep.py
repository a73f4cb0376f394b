"""`--sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3`: which settings are meant? An edit for each combination of
values, all of one run.

So everything of `fz.run` holds: cache, resuming, folder. What is written beside the run's files is `fz.results.sheet`'s
question.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from fz import words
from fz.errors import FzError, suggest
from fz.settings.config import EditSettings, Settings
from fz.settings.effect import beside, effect
from fz.settings.place import default_path

# settings of an edit that are a number, and the released code's names of them
NAMES = {name: name for name in ("self_replace", "cross_replace", "threshold", "blend_latents")}
NAMES |= {"blend_th": "threshold", "self_replace_steps": "self_replace", "cross_replace_steps": "cross_replace"}
MOST = 100
Variant = tuple[tuple[str, float | None], ...]  # ('self_replace', 0.2), ('reweight.blue', 2.0) …


def read_sweeps(texts: Sequence[str]) -> list[Variant]:
    """All combinations of 'name=0.2:0.9:0.1' (both ends) and 'name=0.2,0.3,none'. Names: NAMES, or reweight.WORD."""
    axes: dict[str, list[float | None]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.replace("-", "_") if not name.startswith("reweight.") else name
        if not name.startswith("reweight."):
            if name not in NAMES:
                choices = (*NAMES, "reweight.WORD")
                raise FzError(
                    f"sweep: unknown setting {name!r}, expected one of {', '.join(choices)}.{suggest(name, choices)}"
                )
            name = NAMES[name]
        if name in axes:
            raise FzError(f"sweep: {name} is given twice. Put its values in one list, as {name}=0.2,0.4.")
        axes[name] = read_values(text, values)
    if not axes:
        raise FzError("sweep: got nothing to sweep, expected as --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3.")
    count = math.prod(len(values) for values in axes.values())
    if count > MOST:
        shown = count if count < 10**9 else "more than 10^9"
        raise FzError(f"sweep: {shown} combinations, expected at most {MOST}. Take fewer values.")
    return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def read_values(text: str, values: str) -> list[float | None]:
    parts = values.split(":") if ":" in values else values.split(",")
    try:
        numbers = [None if part.strip() == "none" else float(part) for part in parts]
        if any(n is not None and not abs(n) < 1e6 for n in numbers):
            raise ValueError
        if ":" not in values:
            return numbers
        low, high, step = numbers
        if not (step > 0 and low <= high):
            raise ValueError
    except (ValueError, TypeError):
        raise FzError(
            f"sweep: got {text!r}, expected NAME=FROM:TO:STEP or NAME=A,B,C, as threshold=0.2,0.3,none."
        ) from None
    count = int((high - low) / step + 1e-9) + 1
    if count > MOST:
        raise FzError(f"sweep: {text!r} has {count} values, expected at most {MOST}. Take a larger step.")
    # 0.30000000000000004 is 0.3
    return [round(low + i * step, 9) for i in range(count)]


def expand(settings: Settings, variants: Sequence[Variant]) -> Settings:
    """The settings with each of their edits once for each variant; unless told otherwise, in a folder beside the plain
    run's. Raises FzError for what is swept and changes no edit.
    """
    if len(settings.edits) * len(variants) > MOST:
        raise FzError(
            f"sweep: {len(settings.edits)} targets of {len(variants)} settings each, expected at most {MOST} "
            "edits in all."
        )
    edits = tuple(varied(edit, variant) for edit in settings.edits for variant in variants)
    for name, _ in variants[0]:
        check_changes(name, settings, variants)
    return dataclasses.replace(settings, edits=edits, out=settings.out or f"{default_path(settings)}-sweep")


def check_changes(name: str, settings: Settings, variants: Sequence[Variant]) -> None:
    """Raise FzError where no two values of a setting, others being equal, make two edits. Of several numbers and none,
    the numbers have to.
    """
    values = list(dict.fromkeys(dict(variant)[name] for variant in variants))
    numbers = [value for value in values if value is not None]
    compared = numbers if len(numbers) > 1 else values
    made: dict[Any, list[Any]] = {}
    for i, edit in enumerate(settings.edits):
        for variant in variants:
            if dict(variant)[name] in compared:
                others = tuple(pair for pair in variant if pair[0] != name)
                one = varied(edit, variant)
                acts = effect(one, settings.steps, settings.method), settings.fuses_full(one)
                made.setdefault((i, others), []).append(acts)
    if len(compared) == 1 or any(acts != group[0] for group in made.values() for acts in group):
        return
    other = beside(name, varied(settings.edits[0], variants[0]), settings.steps, settings.method)
    if other is not None:
        raise FzError(f"sweep: got {name} with {other}. Expected a setting that counts there. Leave one of them out.")
    listed = ", ".join(f"{value:g}" if value is not None else "none" for value in compared)
    of_steps = f" of {settings.steps} steps" if name.endswith("_replace") else ""
    raise FzError(f"sweep: got {name} {listed}, which are the same{of_steps}. Expected values that differ.")


def varied(edit: EditSettings, variant: Variant) -> EditSettings:
    fields: dict[str, Any] = {}
    for name, value in variant:
        if name.startswith("reweight."):
            word = name.partition(".")[2]
            factors = fields.get("reweight", edit.reweight)
            fields["reweight"] = (*(pair for pair in factors if words.bare(pair[0]) != words.bare(word)), (word, value))
        else:
            fields[name] = value
    return dataclasses.replace(edit, **fields)
