"""What does a flag's text mean? Functions from the text to a value, for argparse, which puts the flag's name before the
message.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence

from fz.errors import FzError, suggest
from fz.settings import checks
from fz.settings.config import DEVICES, Crop


def whole(low: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        # int() alone takes '1_0' and ' 7 ' too
        if not re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII) or int(value) < low:
            large = " and at most 18 digits" if re.fullmatch(r"\d+", value, re.ASCII) and len(value) > 18 else ""
            raise argparse.ArgumentTypeError(f"got {value!r}, expected a whole number of at least {low}{large}.")
        return int(value)

    return parse


def multiple(of: int) -> Callable[[str], int]:
    """Of a side of pictures: 32 or 64, below which a model's smallest feature map has no whole cell."""

    def parse(value: str) -> int:
        if (side := whole(of)(value)) % of:
            near = side - side % of
            raise argparse.ArgumentTypeError(f"got {side}, expected a multiple of {of}, as {near} or {near + of}.")
        return side

    return parse


def reuse(value: str) -> int | str:
    try:
        return checks.reuse(value)
    except FzError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("reuse: ")) from None


def number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a number.") from None


def positive(value: str) -> float:
    if not 0 < number(value) < math.inf:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a number above 0.")
    return number(value)


def fraction(value: str) -> float:
    if not 0 <= number(value) <= 1:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a number from 0 to 1.")
    return number(value)


def gradients(value: str) -> tuple[float, float]:
    parts = value.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected LOW,HIGH, as 50,100.")
    return number(parts[0]), number(parts[1])


def number_or_none(value: str) -> float | None:
    if value == "none":
        return None
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a number from 0 to 1, or none.") from None


def count(value: str) -> int | None:
    if value == "all":
        return None
    try:
        return whole(1)(value)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected a whole number of at least 1, or all.") from None


def size(value: str) -> int | tuple[int, int] | str:
    if value == "original":
        return value
    found = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", value, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(
            f"got {value!r}, expected a number (a square), HEIGHTxWIDTH or original, as 512 or 384x640."
        )
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


def crop(value: str) -> Crop:
    parts = value.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,6}", p.strip(), re.ASCII) for p in parts):
        raise argparse.ArgumentTypeError(
            f"got {value!r}, expected pixels to cut as LEFT,RIGHT,TOP,BOTTOM, such as 0,0,40,0."
        )
    return Crop(*map(int, parts))


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(
                f"got {value!r}, expected one of {', '.join(choices)}.{suggest(value, choices)}"
            )
        return value

    return parse


def device(value: str) -> str:
    return value if re.fullmatch(r"cuda:\d+", value) else one_of(DEVICES)(value)


def frame_index(value: str) -> tuple[int | str, ...]:
    entries = [entry.strip() for entry in value.strip("[] ").split(",")]
    return tuple(int(e) if re.fullmatch(r"[+-]?\d{1,9}", e, re.ASCII) else e.strip("'\"") for e in entries if e)


def share(value: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in value.strip("[] ").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2) or not all(0 <= n <= 1 for n in numbers) or sorted(numbers) != list(numbers):
        raise argparse.ArgumentTypeError(
            f"got {value!r}, expected a share of the steps from 0 to 1 or FROM,TO, as 0.8 or 0.1,0.8."
        )
    return numbers if len(numbers) == 2 else numbers[0]


def share_of_word(value: str) -> tuple[str | None, float | tuple[float, ...]]:
    word, _, amount = value.rpartition("=")
    return word or None, share(amount)


def factor_of_word(value: str) -> tuple[str, float]:
    word, _, factor = value.rpartition("=")
    try:
        return (word, float(factor)) if word else ("", float("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {value!r}, expected WORD=FACTOR, as watercolor=10.") from None


def file_of_strength(value: str) -> tuple[str, float | None]:
    path, equals, strength = value.rpartition("=")
    try:
        return (path, float(strength)) if path and equals else (value, None)
    except ValueError:
        return value, None  # a path that has a '=' in it


def file_of_word(value: str) -> tuple[str, str | None]:
    path, equals, word = value.rpartition("=")
    whole = not (path and equals and word) or "/" in word or os.path.isfile(value)
    return (value, None) if whole else (path, word)


def sentence(value: str) -> str:
    try:
        checks.check_says("", value, "words, as 'a red car on the sand'")
    except FzError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
    return value


def words(value: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", value.strip(" ,"))) if value.strip(" ,") else ()
