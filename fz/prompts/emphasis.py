"""Does a prompt have A1111's emphasis, `(dog:1.3)`, `((dog))` or `[dog]`, and what gives the same here?

fz reads brackets as they are written: what is weighted is said by `--reweight`, and is attention, not the embedding.
"""

import re
import shlex
from collections.abc import Iterator

WEIGHTED = re.compile(r"(?<!\\)\(([^()\[\]:]+):\s*(\d*\.?\d+)\s*\)")
STRONGER = re.compile(r"(?<!\\)(\({2,})([^()\[\]:]+)\){2,}")
WEAKER = re.compile(r"(?<!\\)(\[+)([^()\[\]]+)\]+")
STEP = 1.1  # A1111's factor of one bracket


def emphasised(prompt: str) -> Iterator[tuple[str, str, float | None]]:
    """(as it is written, its words, A1111's factor; None for what changes over the steps, as [cat:dog:0.5])."""
    for found in WEIGHTED.finditer(prompt):
        yield found[0], found[1].strip(), float(found[2])
    for found in STRONGER.finditer(prompt):
        yield found[0], found[2].strip(), STEP ** len(found[1])
    for found in WEAKER.finditer(prompt):
        changes = ":" in found[2] or "|" in found[2]
        yield found[0], found[2].strip(), None if changes else STEP ** -len(found[1])


def notes_on(prompt: str, what: str, reweights: bool) -> list[str]:
    """A line for each emphasis in a prompt. what: the setting. reweights: whether --reweight counts there."""
    lines = []
    for written, words, factor in emphasised(prompt):
        line = f"{what}: {written!r} is read as it is written, brackets too"
        if factor is None:
            lines.append(f"{line}; words that change over the steps are none of fz's: --cross-replace says until when")
        elif reweights:
            lines.append(
                f"{line}; to weight it, write {words!r} and pass --reweight {shlex.quote(f'{words}={factor:.2g}')}"
            )
        else:
            lines.append(f"{line}; write {words!r}: only words of a target are weighted")
    return lines
