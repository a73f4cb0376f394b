"""Textual inversion: from a file to its words and the vectors that stand for them (arXiv 2208.01618).

Read are A1111's layouts (.pt, and safetensors with emb_params) and diffusers' (one tensor under its word), by the
project's safe readers. What a file is, is told before a model is read.

A1111 takes the file's name for the word, whatever the file says; there both count. A file of diffusers' has one word:
`<cat>` in dog.bin leaves 'dog' as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fz.errors import FzError
from fz.prompts.text import LENGTH
from fz.weights.hub import located
from fz.weights.layouts import some
from fz.weights.needed import OF_EMBEDDING
from fz.weights.read import read_any
from fz.words import split

OTHER_WIDTHS = {1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Learned:
    """words: as prompts have it, any of them. vectors: (n, Cx) float32, one for each token that it becomes."""

    path: Path
    words: tuple[str, ...]
    vectors: Tensor

    @property
    def word(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        count = len(self.vectors)
        return f"embedding {' or '.join(self.words)} ({count} vector{'s' if count > 1 else ''})"


def read_embedding(given: str | Path, word: str | None = None) -> Learned:
    """Read a file, a Hub name's (`hub.py`) or a folder's. word: in place of its own. Raises FzError, beginning with
    'embedding:', for anything that is no sound embedding for Stable Diffusion v1.
    """
    path = located(given, "embedding", OF_EMBEDDING)
    try:
        content = read_any(path)
    except FzError as error:
        said = str(error).replace("Is it a Stable Diffusion v1.x checkpoint?", "Is it a textual inversion?")
        raise FzError(f"embedding: {said}") from None
    names, vectors = found_in(path, content)
    check_vectors(path, vectors)
    words = (checked_word(path, word),) if word else words_of(path, names)
    return Learned(path, words, vectors.detach().float().reshape(-1, vectors.shape[-1]))


def found_in(path: Path, content: Any) -> tuple[list[str], Tensor]:
    """(the names that stand for it, its tensor)."""
    expected = "Expected string_to_param, emb_params, or one tensor under its word"
    if not isinstance(content, Mapping):
        raise FzError(f"embedding: {path} holds {type(content).__name__}. {expected}.")
    if "clip_l" in content or "clip_g" in content:
        raise FzError(
            f"embedding: {path} is for Stable Diffusion XL. Use one that was trained for Stable Diffusion v1."
        )
    if "string_to_param" in content:
        inside = content["string_to_param"]
        inside = getattr(inside, "parameters", inside)
        tensors = [t for t in inside.values() if isinstance(t, Tensor)] if isinstance(inside, Mapping) else []
        names = [content.get("name"), path.stem]
    else:
        tensors = [t for t in content.values() if isinstance(t, Tensor)]
        if len(tensors) != len(content):
            tensors = []
        names = [key for key in content if key != "emb_params"]
    if len(tensors) != 1:
        keys = some(sorted(map(str, content)))
        if any("lora" in str(key) for key in content):
            raise FzError(f"embedding: {path} is a LoRA. Pass it with --lora.")
        raise FzError(f"embedding: {path} holds {len(tensors)} embeddings (it has {keys}). {expected}.")
    # '*' is what A1111 and the first code write where a word could be
    return [name for name in names if isinstance(name, str) and name not in ("", "*")], tensors[0]


def words_of(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that prompts can have as one word; where there is none, the file's name."""
    words = {name.lower(): name for name in names if is_word(name)}
    return tuple(words.values()) or (checked_word(path, path.stem, names),)


def check_vectors(path: Path, vectors: Tensor) -> None:
    shape = "×".join(map(str, vectors.shape)) or "a number"
    if vectors.ndim not in (1, 2) or not vectors.is_floating_point() or 0 in vectors.shape:
        kind = str(vectors.dtype).removeprefix("torch.")
        raise FzError(f"embedding: {path} holds {shape} of {kind}, expected vectors, as 4×768. Download it again.")
    if vectors.ndim == 2 and len(vectors) > LENGTH - 2:
        raise FzError(
            f"embedding: {path} has {len(vectors)} vectors, expected at most {LENGTH - 2}: a prompt's length."
        )
    # float: not every type of 8 bits is asked
    if not vectors.float().isfinite().all():
        raise FzError(f"embedding: {path} has NaN or infinity in it. Download it again.")
    if model := OTHER_WIDTHS.get(vectors.shape[-1]):
        raise FzError(
            f"embedding: {path} is for {model} ({vectors.shape[-1]} wide). Use one that was trained for Stable "
            "Diffusion v1."
        )


def is_word(name: str) -> bool:
    """Can prompts have it as one word?"""
    return split(name) == [name] and len(name) <= 60 and name.isprintable()


def checked_word(path: Path, word: str, before: Sequence[str] = ()) -> str:
    """The word. Raises FzError for what is none, naming what the file is called beside it, too."""
    if not is_word(word):
        got = " and ".join(repr(name[:60]) for name in dict.fromkeys((*before, word)))
        raise FzError(
            f"embedding: {path} stands for {got}, expected one word. Choose one, as --embedding FILE='<style>'."
        )
    return word
