"""Which words of the source prompt the target's words are, and which of its tokens a token of the target takes: the
mappers of Algorithm 2 (prompt-to-prompt's).

What a word is, and how words are compared, is `fz.words`'s question. Columns are tokens 0 … 76, start, end and padding
included.
"""

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fz import words
from fz.prompts.text import LENGTH, Tokens, Word
from fz.words import bare, counts, inner

Pair = tuple[int | None, int | None]  # a word of the source and one of the target; None on one side: left out, added
Way = tuple[int, int, int, tuple | None]  # changes, -words kept, runs of them, (the way before, the last pair)


def word_positions(tokens: Tokens, needle: str, what: str = "word") -> list[int]:
    """Positions of all tokens of every occurrence of a word, or of several words in a row; of punctuation after or
    before it only where the needle has some there.

    Raises FzError, naming the setting `what`, if it is not in the prompt.
    """
    wanted, found = words.split(str(needle)), set()
    for i in words.occurrences(tokens.prompt, [word.text for word in tokens.words], str(needle), what):
        for text, word in zip(wanted, tokens.words[i : i + len(wanted)], strict=True):
            found |= set(word.core if inner(text) == (0, len(text)) else word.positions)
    return sorted(found)


@functools.lru_cache(256)
def paired(source: Tokens, target: Tokens) -> tuple[Pair, ...]:
    """Which word became which: as few as can be are changed, added or left out; of such ways the one that keeps the
    most words, and keeps them in the fewest runs.
    """
    old, new = ([bare(word.text) for word in tokens.words] for tokens in (source, target))
    row: list[tuple[Way, Way]] = []  # the best ways whose last word is kept, and those whose last word is not
    worst: Way = (10**6, 0, 0, None)
    for i in range(len(old) + 1):
        last, row = row, []
        for j in range(len(new) + 1):
            kept, other = worst, worst if i or j else (0, 0, 0, None)
            steps = [(last[j], (i - 1, None))] if i else []
            steps += [(row[j - 1], (None, j - 1))] if j else []
            steps += [(last[j - 1], (i - 1, j - 1))] if i and j and old[i - 1] != new[j - 1] else []
            for ways, pair in steps:
                for way in ways:
                    other = min(other, (way[0] + 1, way[1], way[2], (way, pair)), key=rank)
            if i and j and old[i - 1] == new[j - 1]:
                for way, begins in zip(last[j - 1], (0, 1), strict=True):
                    kept = min(kept, (way[0], way[1] - 1, way[2] + begins, (way, (i - 1, j - 1))), key=rank)
            row.append((kept, other))
    # of equal ways the one that keeps the earlier of two words, as refinement does
    way, pairs = min(reversed(row[-1]), key=rank), []
    while way[3] is not None:
        way, pair = way[3]
        pairs.append(pair)
    return tuple(pairs[::-1])


def rank(way: Way) -> tuple[int, int, int]:
    return way[:3]


def same(source: Tokens, target: Tokens, pair: Pair) -> bool:
    """Is it one word in both prompts?"""
    i, j = pair
    return i is not None and j is not None and bare(source.words[i].text) == bare(target.words[j].text)


def keeps_places(source: Tokens, target: Tokens) -> bool:
    """Do the prompts have equally many words, and every word that is in both the same place in both?"""
    pairs = paired(source, target)
    return len(source.words) == len(target.words) and all(i == j for i, j in pairs if None not in (i, j))


def differing_words(source: Tokens, target: Tokens) -> tuple[list[Word], list[Word]]:
    """The words of either prompt that are changed, left out or added. Articles and punctuation are never among them."""
    changed = [pair for pair in paired(source, target) if not same(source, target, pair)]
    gone = [source.words[i] for i, _ in changed if i is not None]
    come = [target.words[j] for _, j in changed if j is not None]
    return [word for word in gone if counts(word.text)], [word for word in come if counts(word.text)]


def replacement(source: Tokens, target: Tokens) -> Tensor:
    """A (77, 77) between prompts of equally many words: fused[:, j] = Σ_i c_src[:, i] A[i, j].

    Words are paired by place. Within a pair, a token takes the same token of the other word; what is left between such
    takes the other's one by one if there are equally many, or else the mean of them. Punctuation around a word takes
    that on the same side, or, where there is none, the word. Padding follows, shifted as the end token is. Columns sum
    to 1.
    """
    mapper = torch.zeros(LENGTH, LENGTH)
    mapper[0, 0] = 1
    for old, new in zip(source.words, target.words, strict=True):
        before, after = sides(old), sides(new)
        for i, j in zip((before[0], old.core, before[1]), (after[0], new.core, after[1]), strict=True):
            for rows, column in taken(source, target, i, j):
                mapper[list(rows or old.core), column] = 1 / len(rows or old.core)
    shift = source.used - target.used
    for j in range(target.used - 1, LENGTH):
        mapper[min(j + shift, LENGTH - 1), j] = 1
    return mapper


def sides(word: Word) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of the punctuation before and after it."""
    first, last = word.core[0], word.core[-1]
    return tuple(p for p in word.positions if p < first), tuple(p for p in word.positions if p > last)


def taken(
    source: Tokens, target: Tokens, old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[Sequence[int], int]]:
    """For each of the positions `new` those of `old` that it takes in equal parts; none where nothing corresponds."""
    ids = [[tokens.ids[p] for p in positions] for tokens, positions in ((source, old), (target, new))]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *ids, autojunk=False).get_opcodes():
        one_by_one = kind == "equal" or b - a == d - c
        for k in range(c, d):
            yield (old[a + k - c : a + k - c + 1] if one_by_one else old[a:b]), new[k]


def refinement(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """For each target token the source token it is, and whether it is one: mapper (77,) int64, -1 for a new token, and
    α (77,), 0 for new.

    The longest common subsequence of the token ids, start and end included (prompt-to-prompt's global alignment: a
    match scores 1, a mismatch -1, a gap 0). What follows the target's end takes the source's token of the same place,
    as in the released code: padding, or, of a longer source, its last words.
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


def weights(positions: Sequence[int]) -> Tensor:
    """(77,): 1 at these tokens."""
    out = torch.zeros(LENGTH)
    out[list(positions)] = 1
    return out
