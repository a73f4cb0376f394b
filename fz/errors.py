"""The one error that a user sees: what was got, what was expected, what to do. Command lines print it in one line and
exit with 2.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class FzError(ValueError):
    """Bad input. The message says got, expected, do, in one line."""


# what people call what has another name here
SAME = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}


def suggest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the choice nearest to word, '' where none is near."""
    choices = [str(c) for c in choices]
    if SAME.get(str(word).lower()) in choices:
        return f" Did you mean '{SAME[str(word).lower()]}'?"
    near = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


@contextlib.contextmanager
def undamaged(what: str, path: Path, advice: str) -> Iterator[None]:
    """A file that the program wrote itself is read in the block. Raises FzError, whatever its bytes lead to."""
    try:
        yield
    except FzError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FzError(f"{what}: {path} is damaged ({reason}). {advice}") from None
