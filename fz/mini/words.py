"""The miniature's tokenizer: CLIP's kind of byte pair encoding, with a vocabulary for the world's captions.

Each word of the captions is one token but for a few that are two, as long words are for CLIP. Anything else is spelled
in bytes.
"""

import random
from pathlib import Path

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel

from fz.mini.world import vocabulary as words_of_captions
from fz.prompts.tokenizer import END, START, STOP, ClipTokenizer
from fz.weights.write import write_tokenizer

SPLIT = {"watercolor": ("water", "color"), "pencil": ("pen", "cil"), "purple": ("pur", "ple"), "orange": ("or", "ange")}


def merges_of(piece: list[str]) -> list[tuple[str, str]]:
    """Merge a piece from the left: c+a, ca+r."""
    merges, left = [], piece[0]
    for right in piece[1:]:
        merges.append((left, right))
        left += right
    return merges


def spelled(word: str) -> list[list[str]]:
    """The word's tokens as lists of characters, the last with the end-of-word mark."""
    pieces = [list(piece) for piece in SPLIT.get(word, (word,))]
    pieces[-1][-1] += STOP
    return pieces


def new_tokenizer(folder: Path) -> ClipTokenizer:
    """Make it and write its files. Raises RuntimeError if no order of merges
    spells every word.
    """
    words = words_of_captions()
    for attempt in range(500):
        random.Random(attempt).shuffle(words)
        merges: list[tuple[str, str]] = list(
            dict.fromkeys(m for word in words for piece in spelled(word) for m in merges_of(piece))
        )
        tokenizer = write_files(folder, merges)
        if all(
            tokenizer.read(word)[0] == [tokenizer.number("".join(piece)) for piece in spelled(word)] for word in words
        ):
            return tokenizer
    raise RuntimeError("no order of merges spells every word")


def write_files(folder: Path, merges: list[tuple[str, str]]) -> ClipTokenizer:
    letters = sorted(ByteLevel.alphabet())  # one character for each byte
    tokens = [*letters, *(letter + STOP for letter in letters), *("".join(m) for m in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    marks = [AddedToken(mark, special=True) for mark in (START, END)]
    tokenizer = ClipTokenizer(vocabulary, merges, marks)
    write_tokenizer(tokenizer, folder)
    return tokenizer
