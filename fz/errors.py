"""The one error that a user sees: what was got, what was expected, what to do. Command lines print it in one line and
exit with 2.
"""

import difflib
from collections.abc import Iterable


class FzError(ValueError):
    """Bad input. The message says got, expected, do, in one line."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the choice nearest to word, '' where none is near."""
    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
