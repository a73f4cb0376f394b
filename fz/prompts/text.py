"""Prompts: which tokens a prompt's words are, and CLIP's embedding of it.

What a word is, is `fz.words`'s question. Files are not read here.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fz.errors import FzError
from fz.words import inner, spans

# prompts are checked before torch is imported, which takes seconds
if TYPE_CHECKING:
    from torch import Tensor

    from fz.model.clip_text import TextModel
    from fz.prompts.tokenizer import ClipTokenizer

LENGTH = 77  # CLIP's text tokens, the first and last of a prompt being its start and end


@dataclass(frozen=True)
class Word:
    """A word of a prompt, its number, and the positions of its tokens.

    core: those without the punctuation around the word, of 'cat,' that of 'cat'; all, if it is nothing but punctuation.
    """

    text: str
    index: int
    positions: tuple[int, ...]
    core: tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """A prompt as CLIP sees it. ids: 77, padded with the end token; used: how many come before the padding, start and
    end included.
    """

    prompt: str
    ids: tuple[int, ...]
    words: tuple[Word, ...]
    used: int

    def word_at(self, position: int) -> str:
        """The word that this token is part of, or '' for start, end and padding."""
        return next((word.text for word in self.words if position in word.positions), "")


def encodes(text: str) -> bool:
    """Is it text? A command line's bytes that are no UTF-8 come as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TextEncoder:
    """CLIP's text tower and its tokenizer.

    learned: words of textual inversion, and the tokens that each becomes; found in any case of letters, as a whole.
    """

    def __init__(
        self,
        tokenizer: "ClipTokenizer",
        model: "TextModel | None",
        learned: Mapping[str, tuple[int, ...]] | None = None,
    ):
        self.tokenizer, self.model = tokenizer, model
        self.learned = {word.lower(): ids for word, ids in (learned or {}).items()}
        # of each file
        self.names: dict[tuple[int, ...], list[str]] = {}
        for word, ids in (learned or {}).items():
            self.names.setdefault(ids, []).append(word)
        # the longest first: '<cat>-2' is not '<cat>'
        words = sorted(self.learned, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(as_whole, words)), re.IGNORECASE) if words else None

    def tokens(self, prompt: str) -> Tokens:
        """The prompt's tokens. Raises FzError if there are more than 77, naming the words that fall off."""
        if not isinstance(prompt, str):
            raise FzError(f"prompt: got {prompt!r}, expected a sentence.")
        if not encodes(prompt):
            raise FzError(f"prompt: {prompt[:60]!r} has bytes that are no text, expected UTF-8. Write it again.")
        body, starts = self.read(prompt)
        words = words_of(prompt, starts)
        if len(body) > LENGTH - 2:
            lost = [word.text for word in words if word.positions[-1] > LENGTH - 2]
            lost = [*lost[:20], *(["…"] if len(lost) > 20 else [])]
            raise FzError(
                f"prompt: {len(body) + 2} tokens, expected at most {LENGTH} with start and end. "
                f"These words fall off: {' '.join(lost)}. Shorten {prompt[:60]!r}{'…' if len(prompt) > 60 else ''}"
            )
        used, own = len(body) + 2, self.tokenizer
        return Tokens(prompt, (own.start, *body, own.end, *[own.padding] * (LENGTH - used)), words, used)

    def read(self, prompt: str) -> tuple[list[int], list[int]]:
        """(token ids, without start and end; the character at which each begins)."""
        ids: list[int] = []
        starts: list[int] = []

        def plain(begin: int, end: int) -> None:
            numbers, places = self.tokenizer.read(prompt[begin:end])
            ids.extend(numbers)
            starts.extend(begin + place for place in places)

        at = 0
        for found in self.pattern.finditer(prompt) if self.pattern else ():
            if prompt[at : found.start()].strip():
                plain(at, found.start())
            tokens = self.learned[found[0].lower()]
            ids.extend(tokens)
            # the character that the word is compared by, not a bracket before it
            starts.extend([found.start() + inner(found[0])[0]] * len(tokens))
            at = found.end()
        if at == 0 or prompt[at:].strip():
            plain(at, len(prompt))
        return ids, starts

    def unused(self, prompts: Sequence[str]) -> list[list[str]]:
        """The learned words of each file that none of these prompts has."""
        if self.pattern is None:
            return []
        used = {self.learned[found[0].lower()] for prompt in prompts for found in self.pattern.finditer(prompt)}
        return [words for ids, words in self.names.items() if ids not in used]

    def encode(self, prompts: Sequence[str]) -> "Tensor":
        """(n, 77, Cx) float32: the last layer's states, after the final norm."""
        import torch

        ids = torch.tensor([self.tokens(prompt).ids for prompt in prompts], device=self.model.device)
        with torch.no_grad():
            return self.model(ids).last_hidden_state.float()


def as_whole(word: str) -> str:
    """A pattern of the word where it is not a part of another."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    return before + re.escape(word) + (r"(?!\w)" if re.search(r"\w$", word) else "")


def words_of(prompt: str, starts: Sequence[int]) -> tuple[Word, ...]:
    """The prompt's words out of the characters at which its tokens start; the first token's position is 1. A word with
    no token of its own is left out.
    """
    places = spans(prompt)
    begins = [start for start, _ in places]
    tokens: list[list[tuple[int, int]]] = [[] for _ in places]
    for position, at in enumerate(starts, 1):
        tokens[max(0, bisect_right(begins, at) - 1)].append((position, at))
    words: list[Word] = []
    for (start, end), there in zip(places, tokens, strict=True):
        if there:
            first, last = (start + offset for offset in inner(prompt[start:end]))
            core = tuple(position for position, at in there if first <= at < last)
            positions = tuple(position for position, _ in there)
            words.append(Word(prompt[start:end], len(words), positions, core or positions))
    return tuple(words)
