"""Textual inversion: from a file to a word and the vectors that stand for it (arXiv 2208.01618).

Read are A1111's layouts (.pt, and safetensors with emb_params) and diffusers' (one tensor under its word), by the
project's safe readers. What a file is, is told before a model is read.
"""

from collections.abc import Mapping
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
    """word: as prompts have it. vectors: (n, Cx) float32, one for each token that it becomes."""

    path: Path
    word: str
    vectors: Tensor

    def __str__(self) -> str:
        count = len(self.vectors)
        return f"embedding {self.word} ({count} vector{'s' if count > 1 else ''})"


def read_embedding(given: str | Path, word: str | None = None) -> Learned:
    """Read a file, a Hub name's (`hub.py`) or a folder's. word: in place of the one that it has or, where it has none,
    of its name. Raises FzError, beginning with 'embedding:', for anything that is no sound embedding for Stable
    Diffusion v1.
    """
    path = located(given, "embedding", OF_EMBEDDING)
    try:
        content = read_any(path)
    except FzError as error:
        said = str(error).replace("Is it a Stable Diffusion v1.x checkpoint?", "Is it a textual inversion?")
        raise FzError(f"embedding: {said}") from None
    own, vectors = found_in(path, content)
    check_vectors(path, vectors)
    return Learned(
        path, checked_word(path, word or own or path.stem), vectors.detach().float().reshape(-1, vectors.shape[-1])
    )


def found_in(path: Path, content: Any) -> tuple[str | None, Tensor]:
    """(the word that the file has, its tensor)."""
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
        name = content.get("name")
        word = name if isinstance(name, str) and name else None
    else:
        tensors = [t for t in content.values() if isinstance(t, Tensor)]
        if len(tensors) != len(content):
            tensors = []
        word = next((key for key in content if isinstance(key, str) and key != "emb_params"), None)
    if len(tensors) != 1:
        keys = some(sorted(map(str, content)))
        if any("lora" in str(key) for key in content):
            raise FzError(f"embedding: {path} is a LoRA. Pass it with --lora.")
        raise FzError(f"embedding: {path} holds {len(tensors)} embeddings (it has {keys}). {expected}.")
    return word, tensors[0]


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


def checked_word(path: Path, word: str) -> str:
    """Raises FzError for what prompts cannot have as one word."""
    if len(split(word)) != 1 or split(word)[0] != word or len(word) > 60 or not word.isprintable():
        raise FzError(
            f"embedding: {path} stands for {word[:60]!r}, expected one word. Choose one, as --embedding FILE='<style>'."
        )
    return word
