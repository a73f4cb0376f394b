"""Is a value one that a setting can have? Each raises FzError, naming the setting, where it is not."""

import math
from collections.abc import Mapping
from typing import Any

from fz.errors import FzError, suggest

Window = tuple[float, float]  # the share of steps, from a to b, in which something is replaced


def window(value: Any, name: str) -> Window:
    """(a, b) from a number r (0 to r) or a pair, both in [0, 1]; raises FzError naming the setting."""
    pair = (0.0, value) if isinstance(value, (int, float)) else value
    numbers = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(v, (int, float)) for v in pair)
    if isinstance(value, bool) or not numbers or not 0 <= pair[0] <= pair[1] <= 1:
        raise FzError(
            f"{name}: got {value!r}, expected a share of the steps from 0 to 1 or a pair [from, to] of them, as 0.8 "
            "or [0, 0.8]."
        )
    return (float(pair[0]), float(pair[1]))


def pairs(name: str, value: Any, example: str) -> tuple[tuple[str, Any], ...]:
    """(word, value) pairs from a dict or a sequence of them; raises FzError naming the setting."""
    items = value.items() if isinstance(value, Mapping) else value if is_list(value) else [None]
    if not all(is_list(item) and len(item) == 2 and isinstance(item[0], str) for item in items):
        raise FzError(f"{name}: got {value!r}, expected words with their values, as {example}.")
    return tuple((word, amount) for word, amount in items)


def word_groups(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """blend_words from (source words, target words), each words in a sequence or in one text; raises FzError."""
    groups = [group.split() if isinstance(group, str) else group for group in value] if is_list(value) else [None]
    groups = [*groups, ()][:2] if len(groups) == 1 else groups
    if len(groups) != 2 or not all(is_list(group) and all(isinstance(w, str) for w in group) for group in groups):
        raise FzError(
            f"blend_words: got {value!r}, expected the source's words and the target's, as ('silver jeep', 'Porsche')."
        )
    return tuple(groups[0]), tuple(groups[1])


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def check_sentence(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FzError(f"{name}: got {value!r}, expected a sentence.")


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise FzError(f"{name}: got {value!r}, expected one of {', '.join(choices)}.{suggest(value, choices)}")


def check_whole(name: str, value: Any, low: int, high: int, hint: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FzError(
            f"{name}: got {value!r}, expected a whole number from {low} to {high}.{' ' + hint if hint else ''}"
        )
