"""Prompts as CLIP sees them: token ids, which tokens a word is, prompts that are too long, embeddings."""

import pytest
import torch
from tiny_model import text_encoder
from transformers import CLIPTextModel

from fz.errors import FzError
from fz.prompts.text import LENGTH, TextEncoder
from fz.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def text(models):
    folder = models / "tiny_sd"
    return TextEncoder(
        load_tokenizer(folder / "tokenizer", 2**31), CLIPTextModel.from_pretrained(folder / "text_encoder")
    )


@pytest.fixture(scope="module", params=["the model's", "small"])
def words(request, text):
    """A tokenizer in which words are chosen, beside the model's own."""
    return text if request.param == "the model's" else text_encoder()


def test_ids_are_those_of_the_whole_prompt(words):
    """Words only group a sentence's tokens: CLIP's own answer for it is the same, padding included."""
    prompts = (
        "a silver jeep driving down a curvy road",
        "don't stop the rock'n'roll",
        " a  cat ",
        "Café, #1 (2024)!",
        "😀 cat\nsits",
        "",
    )
    for prompt in prompts:
        (row,) = words.tokenizer.rows([prompt], LENGTH)
        found = words.tokens(prompt)
        assert list(found.ids) == row + [words.tokenizer.padding] * (LENGTH - len(row)) and found.used == len(row)


def test_words_are_what_stands_between_white_space(words):
    tokens = words.tokens("a \n apple,\u3000please ")
    assert [word.text for word in tokens.words] == ["a", "apple,", "please"]
    assert tokens.words[1].positions == (2, 3) and tokens.words[1].core == (2,)
    assert [word.index for word in tokens.words] == [0, 1, 2]
    positions = [p for word in tokens.words for p in word.positions]
    assert positions == list(range(1, tokens.used - 1))
    assert tokens.word_at(2) == "apple," and tokens.word_at(0) == "" and tokens.word_at(LENGTH - 1) == ""


def test_a_long_prompt_says_which_words_fall_off(words):
    fits = "cat " * (LENGTH - 2)
    assert words.tokens(fits).used == LENGTH
    with pytest.raises(FzError, match="78 tokens, expected at most 77.*fall off: dog\\."):
        words.tokens(fits + "dog")


def test_embeddings_do_not_depend_on_the_batch(text):
    both = text.encode(["a cat", "a dog on a mat"])
    assert both.shape[:2] == (2, LENGTH) and both.dtype == torch.float32
    assert torch.allclose(both[1], text.encode(["a dog on a mat"])[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_prompt_must_be_a_sentence(text):
    with pytest.raises(FzError, match="got 3, expected a sentence"):
        text.tokens(3)
