"""Which token of the source prompt a token of the target prompt corresponds to: the mappers of Algorithm 2
(prompt-to-prompt's).

Words, which stand between spaces, match whatever their case and the punctuation around them. Columns are tokens 0 … 76,
start, end and padding included.
"""

import difflib
import string
import unicodedata
from collections.abc import Mapping

import torch
from torch import Tensor

from fz.errors import FzError, suggest
from fz.prompts.text import LENGTH, Tokens, Word


def bare(word: str) -> str:
    """The word as it is compared: lower case, without punctuation around it."""
    word = word.lower()
    start, end = 0, len(word)
    while start < end and is_punctuation(word[start]):
        start += 1
    while end > start and is_punctuation(word[end - 1]):
        end -= 1
    # a word that is punctuation only is itself
    return word[start:end] or word


def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def word_positions(tokens: Tokens, needle: str, what: str = "word") -> list[int]:
    """Positions of all tokens of every occurrence of a word, or of several words in a row.

    Raises FzError, naming the setting `what`, if it is not in the prompt.
    """
    wanted = [bare(word) for word in str(needle).split(" ") if word]
    words = [bare(word.text) for word in tokens.words]
    found: list[int] = []
    for i in range(len(words) - len(wanted) + 1 if wanted else 0):
        if words[i : i + len(wanted)] == wanted:
            found += [p for word in tokens.words[i : i + len(wanted)] for p in word.positions]
    if not found:
        near = suggest(str(needle).lower(), words)
        there = ", ".join(dict.fromkeys(word.text for word in tokens.words)) or "none"
        raise FzError(f"{what}: {needle!r} is not in the prompt {tokens.prompt!r}.{near} Words there: {there}.")
    return sorted(set(found))


def replacement(source: Tokens, target: Tokens) -> Tensor:
    """A (77, 77) between prompts of equally many words: fused[:, j] = Σ_i c_src[:, i] A[i, j].

    A word that stays takes its own tokens. A word that replaces another takes them one by one if they have equally many
    tokens, or else the mean of the other's in each of its tokens. Padding follows, shifted as the end token is. Columns
    sum to 1.
    """
    mapper = torch.zeros(LENGTH, LENGTH)
    mapper[0, 0] = 1
    for old, new in zip(source.words, target.words, strict=True):
        if len(old.positions) == len(new.positions):
            mapper[list(old.positions), list(new.positions)] = 1
        else:
            for j in new.positions:
                mapper[list(old.positions), j] = 1 / len(old.positions)
    shift = source.used - target.used
    for j in range(target.used - 1, LENGTH):
        mapper[min(j + shift, LENGTH - 1), j] = 1
    return mapper


def refinement(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """For each target token the source token it is, and whether it is one: mapper (77,) int64, -1 for a new token, and
    α (77,), 0 for new.

    The longest common subsequence of the token ids, start and end included (prompt-to-prompt's global alignment: a
    match scores 1, a mismatch -1, a gap 0). Padding takes padding.
    """
    x, y = source.ids[: source.used], target.ids[: target.used]
    best = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            diagonal = best[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], diagonal)
    mapper = torch.arange(LENGTH)
    i, j = len(x), len(y)
    while j > 0:
        # where alignments are equally good, a target token is new rather than a source token lost, and lost rather than
        # matched
        if i == 0 or best[i][j] == best[i][j - 1]:
            j -= 1
            mapper[j] = -1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            mapper[j] = i
    return mapper, (mapper >= 0).float()


def equalizer(target: Tokens, factors: Mapping[str, float]) -> Tensor:
    """r (77,): the factor at every token of each word, 1 elsewhere."""
    r = torch.ones(LENGTH)
    for word, factor in factors.items():
        r[word_positions(target, word, "reweight")] = float(factor)
    return r


def cross_window(
    target: Tokens, steps: int, default: tuple[float, float], words: Mapping[str, tuple[float, float]]
) -> Tensor:
    """β (T + 1, 77): 1 at edit step k where a column is replaced, int(a·n) ≤ k < int(b·n), n = T + 1; some words have
    their own [a, b].
    """
    beta = torch.zeros(steps + 1, LENGTH)
    beta[slice(*step_window(default, steps + 1))] = 1
    for word, share in words.items():
        positions = word_positions(target, word, "cross_replace")
        beta[:, positions] = 0
        start, end = step_window(share, steps + 1)
        beta[start:end, positions] = 1
    return beta


def step_window(share: tuple[float, float], steps: int) -> tuple[int, int]:
    return int(share[0] * steps), int(share[1] * steps)


def differing_words(source: Tokens, target: Tokens) -> tuple[list[str], list[str]]:
    """The words of either prompt that the other does not have in their place (longest matching blocks of words)."""
    old, new = ([bare(word.text) for word in tokens.words] for tokens in (source, target))
    gone: list[Word] = []
    come: list[Word] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            gone += source.words[a:b]
            come += target.words[c:d]
    return [bare(word.text) for word in gone], [bare(word.text) for word in come]
