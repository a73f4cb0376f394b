"""Token alignment: the released code's answers on its prompt pairs, the right answers where it errs, and hand-made
cases.
"""

import json

import pytest
import torch
from tiny_model import text_encoder

from fz.errors import FzError
from fz.prompts import align
from fz.prompts.text import LENGTH, TextEncoder
from fz.weights.tokenizer import load_tokenizer

# curly quotes and &amp;: the released tokenizer cleans them, transformers' does not
OTHER_CLEANING = (40, 41)
TOO_LONG = (44, 45, 46)


# a newline parts words here, not there
WHITE_SPACE = (38,)


@pytest.fixture(scope="module")
def released(golden):
    """The tokenizer of the released code's answers."""
    return TextEncoder(load_tokenizer(golden / "tiny_sd" / "tokenizer", 2**31), None)


@pytest.fixture(scope="module")
def text():
    return text_encoder()


@pytest.fixture(scope="module")
def answers(golden):
    return json.loads((golden / "alignment.json").read_text())


def wrong(answers, pair, what):
    """Does the reference say that the released answer is wrong there?"""
    return any(p["pair"] == pair["index"] and p["problem"].startswith(what) for p in answers["problems"])


@pytest.fixture(scope="module")
def pairs(released, answers):
    kept = [p for p in answers["pairs"] if p["index"] not in OTHER_CLEANING + TOO_LONG]
    assert len(kept) >= 25
    return [(p, released.tokens(p["source"]), released.tokens(p["target"])) for p in kept]


def test_token_ids(pairs):
    for pair, source, target in pairs:
        assert list(source.ids) == pair["source_ids_padded"] and list(target.ids) == pair["target_ids_padded"], pair[
            "source"
        ]


def test_positions_of_words(pairs):
    for pair, source, target in pairs:
        if pair["index"] in WHITE_SPACE:
            assert [list(word.positions) for word in source.words] == [[1], [2], [3]]
            continue
        for side, tokens in (("source", source), ("target", target)):
            expected = [p for p in pair[f"{side}_word_inds_expected"] if p]
            assert [list(word.positions) for word in tokens.words][: len(expected)] == expected, tokens.prompt


def test_refinement(pairs, answers):
    compared = 0
    for pair, source, target in pairs:
        if "refine_mapper" not in pair or wrong(answers, pair, "refine"):
            continue
        mapper, kept = align.refinement(source, target)
        assert mapper.tolist() == pair["refine_mapper"] and kept.tolist() == pair["refine_alphas"], pair["target"]
        compared += 1
    assert compared >= 25


def test_replacement(pairs, answers):
    compared = 0
    for pair, source, target in pairs:
        if pair.get("replace_nonzero") is None or wrong(answers, pair, "replace"):
            continue
        expected = torch.zeros(LENGTH, LENGTH)
        for i, j, weight in pair["replace_nonzero"]:
            expected[i, j] = weight
        assert torch.equal(align.replacement(source, target), expected), pair["target"]
        compared += 1
    assert compared >= 8


def test_replacement_is_right_where_the_released_one_is_not(pairs, answers):
    compared = 0
    for pair, source, target in pairs:
        if len(source.words) != len(target.words) or not wrong(answers, pair, "replace"):
            continue
        mapper = align.replacement(source, target)
        assert torch.allclose(mapper.sum(0), torch.ones(LENGTH)), pair["target"]
        for old, new in zip(source.words, target.words, strict=True):
            columns = mapper[:, list(new.positions)]
            # nothing but the word's own tokens
            assert torch.allclose(columns[list(old.positions)].sum(0), torch.ones(len(new.positions))), (
                old.text,
                new.text,
            )
            if old.text == new.text:
                assert torch.equal(columns[list(old.positions)], torch.eye(len(new.positions)))
        compared += 1
    assert compared >= 6


def test_equalizer(pairs, answers):
    compared = 0
    for pair, _, target in pairs:
        exact = pair.get("equalizer_words") and pair.get("equalizer") and not wrong(answers, pair, "get_word_inds")
        if not exact:
            continue
        there = {}
        for word, value in zip(pair["equalizer_words"], pair["equalizer_values"], strict=True):
            try:
                align.word_positions(target, word)
            except FzError:
                continue  # the released code passes over words that are not there
            there[word] = value
        assert align.equalizer(target, there).tolist() == pair["equalizer"], pair["target"]
        compared += 1
    assert compared >= 15


def test_unequal_words_are_averaged(text):
    """'dog' (one token) becomes 'labradoodle' (several): each of them takes all of dog; and the other way the mean."""
    source, target = text.tokens("a dog on a mat"), text.tokens("a labradoodle on a mat")
    old, new = source.words[1].positions, target.words[1].positions
    assert len(old) == 1 and len(new) > 1
    there, back = align.replacement(source, target), align.replacement(target, source)
    assert torch.equal(there[old[0], list(new)], torch.ones(len(new)))
    assert torch.allclose(back[list(new), old[0]], torch.full((len(new),), 1 / len(new)))
    on = source.words[2].positions[0], target.words[2].positions[0]
    assert there[on] == 1 and back[on[::-1]] == 1


def test_words_match_whatever_their_case_and_punctuation(text):
    tokens = text.tokens('The Cat, the "cat" and a CAT-like dog')
    # of 'Cat,' and '"cat"' without their punctuation
    assert align.word_positions(tokens, "cat") == [2, 6]
    assert align.word_positions(tokens, '"cat"') == [2, 3, 5, 6, 7]
    assert align.word_positions(tokens, "the cat") == [1, 2, 4, 6]


def test_an_absent_word_names_its_like(text):
    message = r"reweight: 'wolff' is not in the prompt 'a grey wolf'. Did you mean 'wolf'\? Words there: a, grey, wolf"
    with pytest.raises(FzError, match=message):
        align.equalizer(text.tokens("a grey wolf"), {"wolff": 2})


def test_window_of_a_word(text):
    tokens = text.tokens("a grey wolf")
    beta = align.cross_window(tokens, 10, (0.0, 0.8), {"grey": (0.2, 0.5)})
    assert beta.shape == (11, LENGTH)
    # int(a n) to int(b n), n = T + 1
    assert beta[:, 1].nonzero().flatten().tolist() == list(range(8))
    assert beta[:, tokens.words[1].positions[0]].nonzero().flatten().tolist() == [2, 3, 4]
    # of T = 5 steps half are 3, for a word as for all
    beta = align.cross_window(tokens, 5, (0.0, 0.5), {"grey": (0.2, 0.5)})
    assert beta[:, 1].nonzero().flatten().tolist() == [0, 1, 2]
    assert beta[:, tokens.words[1].positions[0]].nonzero().flatten().tolist() == [1, 2]


@pytest.mark.parametrize("words", [("red", "antidisestablishmentarian"), ("antidisestablishmentarian", "red")], ids=str)
def test_padding_follows_the_end_token(text, words):
    """Also where a word of the target has more tokens than the source's, or fewer."""
    source, target = (text.tokens(f"a {word} car") for word in words)
    assert source.used != target.used
    mapper, ends = align.replacement(source, target), (source.used - 1, target.used - 1)
    for k in range(LENGTH - ends[1]):
        assert mapper[:, ends[1] + k].nonzero().flatten().tolist() == [min(ends[0] + k, LENGTH - 1)], k
    assert torch.allclose(mapper.sum(0), torch.ones(LENGTH))


def test_differing_words(text):
    source, target = text.tokens("a silver jeep on the road."), text.tokens("a Porsche car on the wet Road")
    gone, come = align.differing_words(source, target)
    assert [w.text for w in gone] == ["silver", "jeep"] and [w.text for w in come] == ["Porsche", "car", "wet"]
    assert gone == list(source.words[1:3]) and align.differing_words(source, source) == ([], [])


def test_refinement_is_the_longest_common_subsequence(text):
    """Against the plain definition: as many tokens as can be, in order, each of them the same token."""

    def longest(x, y):
        return (
            0 if not x or not y else max(longest(x[1:], y), longest(x, y[1:]), (x[0] == y[0]) + longest(x[1:], y[1:]))
        )

    for source, target in (("a red car on sand", "a big red car on snow"), ("a cat and a cat", "a dog, a cat and"),
                           ("a labradoodle", "a red labradoodle on"), ("car on road", "road on car")):  # fmt: skip
        x, y = text.tokens(source), text.tokens(target)
        mapper, kept = align.refinement(x, y)
        taken = mapper[1 : y.used - 1][kept[1 : y.used - 1] > 0].tolist()
        assert taken == sorted(set(taken)) and len(taken) == longest(x.ids[1 : x.used - 1], y.ids[1 : y.used - 1])
        assert all(x.ids[int(i)] == y.ids[j] for j, i in enumerate(mapper[: y.used]) if i >= 0)
        assert mapper[y.used :].tolist() == list(range(y.used, LENGTH)) and (kept == (mapper >= 0)).all()
