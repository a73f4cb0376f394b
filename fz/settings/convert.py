"""Values of released configs as settings' values. `name` is for the message: each raises FzError for a value of another
kind.
"""

from typing import Any

from fz.errors import FzError


def shown(value: Any) -> str:
    """For messages: sections can be long."""
    return repr(value) if len(repr(value)) <= 120 else f"{repr(value)[:117]}..."


def text(value: Any, name: str) -> str:
    if isinstance(value, (dict, list, bool)):
        raise FzError(f"{name}: got {shown(value)}, expected text.")
    return str(value)


def number(value: Any, name: str) -> float | int:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            pass
    # an int of 400 digits is no float
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, int) and abs(value) > 2**63)
    ):
        raise FzError(f"{name}: got {shown(value)}, expected a number.")
    return value


def whole(value: Any, name: str) -> int:
    value = number(value, name)
    if not float(value).is_integer():
        raise FzError(f"{name}: got {shown(value)}, expected a whole number.")
    return int(value)


def truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise FzError(f"{name}: got {shown(value)}, expected true or false.")
    return value


def frames(value: Any, name: str) -> int | None:
    value = whole(value, name)
    return None if value < 0 else value


def size(value: Any, name: str) -> int | tuple[int, ...]:
    return tuple(whole(v, name) for v in value) if isinstance(value, list) else whole(value, name)


def frame_index(value: Any, name: str) -> tuple[int | str, ...]:
    if not isinstance(value, list):
        raise FzError(f"{name}: got {shown(value)}, expected a list, as [-1, first].")
    return tuple(value)


def centre(value: Any, name: str) -> None:
    if value != "center":
        raise FzError(f"{name}: got {shown(value)}, expected center, the only crop there is; offset moves it.")


def share(value: Any, name: str) -> Any:
    """A number or a pair: checks.window checks the range."""
    return tuple(number(v, name) for v in value) if isinstance(value, list) else number(value, name)


def words(value: Any, name: str) -> tuple[str, ...]:
    return tuple(text(v, name) for v in value) if isinstance(value, list) else (text(value, name),)
