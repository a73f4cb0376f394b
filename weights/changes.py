"""What is put on top of a checkpoint: LoRA, textual inversions and clip skip, before its models are built.

The files are read first: one that is none is refused before a checkpoint is read.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fz.errors import FzError
from fz.weights.embedding import Learned, read_embedding
from fz.weights.lora import LoRA, read_lora
from fz.weights.merge import merged
from fz.weights.source import Part, RawCheckpoint

TOKENS = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Changes:
    """lora: (file, strength). embedding: (file, word or None for its own). clip_skip: as A1111 counts, 1 is none."""

    lora: Sequence[tuple[str, float]] = ()
    embedding: Sequence[tuple[str, str | None]] = ()
    clip_skip: int = 1

    def read(self) -> "ReadChanges":
        """Raises FzError for a file that is none."""
        loras = tuple(read_lora(path, strength) for path, strength in self.lora)
        return ReadChanges(loras, read_words(self.embedding), self.clip_skip)


NOTHING = Changes()


def read_words(embedding: Sequence[tuple[str, str | None]]) -> tuple[Learned, ...]:
    """Raises FzError for two files of one word, too. Of a second word that another file has as well, neither has it."""
    words: dict[str, Learned] = {}
    for path, word in embedding:
        learned = read_embedding(path, word)
        if other := words.get(learned.word.lower()):
            raise FzError(
                f"embedding: {other.path} and {learned.path} are both for {learned.word!r}. Give one another word, as "
                f"--embedding {learned.path}='<other>'."
            )
        words[learned.word.lower()] = learned
    times = Counter(word.lower() for learned in words.values() for word in learned.words)
    return tuple(
        dataclasses.replace(learned, words=(learned.word, *(w for w in learned.words[1:] if times[w.lower()] == 1)))
        for learned in words.values()
    )


def tokens_of(words: Sequence[Learned], first: int) -> dict[str, tuple[int, ...]]:
    """The tokens that each word becomes, numbered from `first`."""
    tokens = {}
    for learned in words:
        tokens |= dict.fromkeys(learned.words, tuple(range(first, first + len(learned.vectors))))
        first += len(learned.vectors)
    return tokens


@dataclass(frozen=True)
class ReadChanges:
    """Changes whose files have been read."""

    loras: tuple[LoRA, ...] = ()
    words: tuple[Learned, ...] = ()
    clip_skip: int = 1

    def applied(self, source: RawCheckpoint) -> tuple[RawCheckpoint, dict[str, tuple[int, ...]]]:
        """The checkpoint with them, and the tokens of each learned word. Raises FzError for what is not made for it."""
        unet = with_weights(source.unet, merged(source.unet.weights.tensors, "unet", self.loras))
        layers = source.text.config.get("num_hidden_layers", 12)
        state = merged(source.text.weights.tensors, "text", self.loras, layers)
        config = dict(source.text.config)
        if self.clip_skip > 1:
            if self.clip_skip > layers:
                raise FzError(
                    f"clip_skip: got {self.clip_skip}, expected at most {layers}: so many layers has the text encoder."
                )
            config["num_hidden_layers"] = layers - self.clip_skip + 1
        table = state.get(TOKENS)
        tokens = tokens_of(self.words, 0 if table is None else len(table))
        if self.words and table is not None:
            for learned in self.words:
                if learned.vectors.shape[1] != table.shape[1]:
                    got = f"embedding: {learned.path} is {learned.vectors.shape[1]} wide, the text encoder"
                    raise FzError(
                        f"{got} {table.shape[1]}. Expected the same; use one that was trained for this model."
                    )
            state[TOKENS] = torch.cat([table.float(), *(learned.vectors for learned in self.words)])
            config["vocab_size"] = len(state[TOKENS])
        text = dataclasses.replace(with_weights(source.text, state), config=config)
        return dataclasses.replace(source, unet=unet, text=text), tokens

    def __str__(self) -> str:
        """', with …' for a line about the checkpoint; nothing where there is none."""
        skip = [f"clip skip {self.clip_skip}"] if self.clip_skip > 1 else []
        parts = [*map(str, self.loras), *map(str, self.words), *skip]
        return f"; {', '.join(parts)}" if parts else ""


def with_weights(part: Part, tensors: Mapping) -> Part:
    return dataclasses.replace(part, weights=part.weights.with_tensors(dict(tensors)))
