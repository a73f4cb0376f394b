"""What one value of a setting may be: each raises FzError, naming the setting, or gives the value in its usual form."""

import dataclasses
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from fz import words
from fz.errors import FzError, suggest
from fz.settings.place import check_not_empty

Window = tuple[float, float]  # the share of steps, from a to b, in which something is replaced
LARGEST_FACTOR = 10_000  # of re-weighting; the released configs have 10
LARGEST_STRENGTH = 100  # of a LoRA; 1 is usual


def plain(value: Any) -> Any:
    """Numbers of other kinds, as numpy's and tensors, as Python's own; also within lists, pairs and dicts. Raises
    FzError for an array that is more than some numbers.
    """
    if type(value) in (bool, int, float):
        return value
    if hasattr(value, "tolist") and hasattr(value, "nbytes"):
        if value.nbytes > 1000:
            got = f"{type(value).__name__} of shape {tuple(value.shape)}"
            raise FzError(f"settings: got {got} among them, expected a number, a word, or some of them.")
        return value.tolist()
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def make_plain(settings: Any) -> None:
    """The fields of a frozen dataclass."""
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))


def check_paths(settings: Any) -> None:
    """Raise FzError for a run's or a tuning's path of nothing."""
    for name in ("checkpoint", "vae", "tokenizer", "model_config", "control", "cache", "out"):
        if (path := getattr(settings, name, None)) is not None:
            check_not_empty(path, name)


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


def reuse(value: Any) -> int | str:
    """3, or '3:outer'; 1 is no reuse. Raises FzError."""
    found = re.fullmatch(r"(\d{1,4})(:outer)?", str(value), re.ASCII)
    if isinstance(value, bool) or not found or not 1 <= int(found[1]) <= 1000:
        expected = "a whole number of steps from 1 (none) to 1000, as 3, or 3:outer"
        raise FzError(f"reuse: got {value!r}, expected {expected}.")
    return f"{int(found[1])}:outer" if found[2] and int(found[1]) > 1 else int(found[1])


def is_factor(value: Any) -> bool:
    """A weight that attention can be multiplied by, in half precision too."""
    return is_number(value, -LARGEST_FACTOR, LARGEST_FACTOR)


def is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def check_sentence(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FzError(f"{name}: got {value!r}, expected a sentence.")
    if found := words.control(value):
        raise FzError(f"{name}: got the control character {found!r} in {value[:60]!r}, expected text. Write it again.")
    if re.search("[\ud800-\udfff]", value):
        raise FzError(f"{name}: {value[:60]!r} has bytes that are no text, expected UTF-8. Write it again.")


def check_says(name: str, value: Any, example: str) -> None:
    """A sentence that has a word. Raises FzError naming the setting."""
    check_sentence(name, value)
    if not words.says(value):
        got = "an empty sentence" if not value.strip() else f"{value[:20]!r}, which has no word"
        raise FzError(f"{name}: got {got}, expected {example}.")


def pairs(name: str, value: Any, example: str) -> tuple[tuple[str, Any], ...]:
    """(word, value) pairs from pairs or from a dict. Raises FzError naming the setting."""
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in items
    ):
        raise FzError(f"{name}: got {value!r}, expected words and their values, as {example}.")
    found = [words.bare(word) for word, _ in items]
    if twice := [word for i, (word, _) in enumerate(items) if found[i] in found[:i]]:
        raise FzError(f"{name}: got {twice[0]!r} twice, expected a word once, as {example}.")
    return tuple(tuple(pair) for pair in items)


def files_with(name: str, value: Any, kind: type) -> tuple[tuple[str, Any], ...]:
    """(path, value) pairs from a path, a path and a number, a list of paths or of pairs, or a dict. A path alone has
    None. kind: of the values. Raises FzError naming the setting.
    """
    items = list(value.items()) if isinstance(value, Mapping) else value
    alone = isinstance(items, (list, tuple)) and len(items) == 2 and isinstance(items[1], (int, float))
    items = [items] if alone or isinstance(items, (str, PurePath)) else items
    if not isinstance(items, (list, tuple)):
        raise FzError(f"{name}: got {value!r}, expected files, as ['style.safetensors'].")
    out = []
    for item in items:
        path, given = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, None)
        if not isinstance(path, (str, PurePath)) or not str(path) or not isinstance(given, (kind, type(None))):
            raise FzError(f"{name}: got {item!r}, expected a file, or a file and its {EACH[name]}.")
        out.append((str(path), given))
    return tuple(out)


EACH = {"lora": "strength, as ('style.safetensors', 0.8)", "embedding": "word, as ('cat.pt', '<cat>')"}


def strengths(value: Any) -> tuple[tuple[str, float], ...]:
    """Of LoRA files; 1 where none is given."""
    out = files_with("lora", value, (int, float))
    for path, strength in out:
        if isinstance(strength, bool) or (strength is not None and not abs(strength) <= LARGEST_STRENGTH):
            raise FzError(f"lora: got {strength!r} for {path}, expected a strength, as 0.8.")
    return tuple((path, 1.0 if strength is None else float(strength)) for path, strength in out)


def word_groups(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(source's words, target's words) from one or two groups, each a word or several."""
    groups = (
        [(group,) if isinstance(group, str) else group for group in value] if isinstance(value, (list, tuple)) else []
    )
    if not 1 <= len(groups) <= 2 or not all(
        isinstance(group, (list, tuple)) and all(isinstance(word, str) for word in group) for group in groups
    ):
        raise FzError(
            f"blend_words: got {value!r}, expected the source's words and the target's, as [['jeep'], ['car']]."
        )
    source, target = (tuple(group) for group in (*groups, ())[:2])
    return source, target


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise FzError(f"{name}: got {value!r}, expected one of {', '.join(choices)}.{suggest(value, choices)}")


def check_whole(name: str, value: Any, low: int, high: int, hint: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FzError(
            f"{name}: got {value!r}, expected a whole number from {low} to {high}.{' ' + hint if hint else ''}"
        )


def check_shard(settings: Any) -> None:
    """Raise FzError for what several processes cannot do to one clip."""
    wrong = {
        f"method {settings.method}": settings.method not in ("fatezero", "ddim"),
        "an edit that removes an object": any(e.remove for e in settings.edits),
        "--chunk": settings.chunk is not None,
        "--compile": settings.compile,
        f"--device {settings.device}": ":" in settings.device,
        "--store disk": settings.store == "disk",
    }
    if settings.shard and (got := [what for what, is_so in wrong.items() if is_so]):
        raise FzError(f"shard: got it with {got[0]}, expected one without the other. Leave one of them out.")


def check_number(name: str, value: Any, low: float, high: float, hint: str) -> None:
    if not is_number(value, low, high):
        raise FzError(f"{name}: got {value!r}, expected a number from {low} to {high}; {hint}")
