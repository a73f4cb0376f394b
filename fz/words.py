"""A sentence's words: where they stand, and how they are compared. The one place that decides it; no tokens, no torch.

Words stand between white space of any kind. Punctuation that joins two words without a space parts them, too, and stays
with the first ('quality,cat' is 'quality,' and 'cat'); hyphens, apostrophes and full stops, and what is between digits,
hold a word together ('navy-blue', "rock'n'roll", '1,000').
"""

import re
import string
import unicodedata
from collections.abc import Sequence

from fz.errors import FzError, suggest

ARTICLES = ("a", "an", "the")
# Unicode's White_Space, as CLIP's tokenizer has it; Python's \s has four control characters more
WORD = re.compile("[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
# marks that are found inside words
HOLDS = "'\u2019\u2018.-\u2010\u2011_&@#%*\\"
OPENING = ("Ps", "Pi")
STRAIGHT = str.maketrans("\u2019\u2018", "''")
# letters and symbols that nobody sees: Hangul's fillers and the Braille pattern without dots
BLANK = "\u115f\u1160\u3164\uffa0\u2800"


def spans(sentence: str) -> list[tuple[int, int]]:
    """(start, end) of every word, in characters."""
    return [span for found in WORD.finditer(sentence) for span in parted(sentence, *found.span())]


def split(sentence: str) -> list[str]:
    """The words as they are written, with the punctuation around them."""
    return [sentence[start:end] for start, end in spans(sentence)]


def parted(sentence: str, start: int, end: int) -> list[tuple[int, int]]:
    """What stands between white space, cut where punctuation parts two words."""
    out, i = [], start
    while i < end:
        run = i
        while i < end and is_punctuation(sentence[i]):
            i += 1
        if start < run < i < end and parts(sentence[run - 1], sentence[run:i], sentence[i]):
            # an opening bracket or quote belongs to what follows
            cut = next((k for k in range(run, i) if unicodedata.category(sentence[k]) in OPENING), i)
            out.append((start, cut))
            start = cut
        i += i == run
    return [*out, (start, end)]


def parts(before: str, marks: str, after: str) -> bool:
    """Does this punctuation between two characters part two words?"""
    if before.isdigit() and after.isdigit():
        return False
    # '<|' and '|>' are the tokenizer's own marks
    bar = "|" in marks and not set(marks) & set("<>")
    return bar or any(unicodedata.category(c).startswith("P") and c not in HOLDS for c in marks)


def is_punctuation(character: str) -> bool:
    """Punctuation, or a character that is not seen (zero width)."""
    kind = unicodedata.category(character)
    return character in string.punctuation or kind.startswith("P") or kind == "Cf"


def says(sentence: str) -> bool:
    """Does it have anything that could be a word: a letter, a digit or a picture, as an emoji, that is seen?"""
    return any(
        unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "So" for c in sentence if c not in BLANK
    )


def control(sentence: str) -> str | None:
    """The first control character that is no white space, as a null byte; no prompt has one."""
    return next((c for c in sentence if unicodedata.category(c) == "Cc" and not c.isspace()), None)


def inner(word: str) -> tuple[int, int]:
    """(start, end) of a word without the punctuation around it; all of it, if it is nothing else."""
    start, end = 0, len(word)
    while start < end and is_punctuation(word[start]):
        start += 1
    while end > start and is_punctuation(word[end - 1]):
        end -= 1
    return (start, end) if start < end else (0, len(word))


def bare(word: str) -> str:
    """The word as it is compared: lower case, composed characters, straight apostrophes, without punctuation around
    it.
    """
    start, end = inner(word)
    return unicodedata.normalize("NFC", word[start:end]).lower().translate(STRAIGHT)


def compared(sentence: str) -> list[str]:
    """Its words as they are compared."""
    return [bare(word) for word in split(sentence)]


def occurrences(sentence: str, there: Sequence[str], needle: str, what: str = "word") -> list[int]:
    """Where a word, or several in a row, begins among the words of a sentence. Raises FzError, naming the setting
    `what`, if it is not there.
    """
    sought, known = compared(needle), [bare(word) for word in there]
    found = [i for i in range(len(known) - len(sought) + 1 if sought else 0) if known[i : i + len(sought)] == sought]
    if not found:
        near = suggest(bare(needle), known)
        listed = ", ".join(dict.fromkeys(there)) or "none"
        raise FzError(f"{what}: {needle!r} is not in the prompt {sentence!r}.{near} Words there: {listed}.")
    return found


def counts(word: str) -> bool:
    """Can this word make a difference? Articles and punctuation never do."""
    return bare(word) not in ARTICLES and not all(map(is_punctuation, word))
