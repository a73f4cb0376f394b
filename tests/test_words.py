"""Words and what becomes of them: where they begin and end, which differ, which tokens an edit takes from where."""

import csv
import json

import pytest
import torch
from tiny_model import text_encoder, transformers_tokenizer

from fz import batch, mini, prompt, run, tune, words
from fz.errors import FzError
from fz.preflight import text_of
from fz.prompts import align, describe
from fz.prompts.explain import as_json
from fz.prompts.plan import plan_edit
from fz.prompts.text import LENGTH
from fz.results import words as pictures
from fz.results.report import first_word
from fz.settings.applications import without
from fz.settings.config import EditSettings, build
from fz.stages import plan_edits
from fz.web import form as forms


@pytest.fixture(scope="module")
def text():
    return text_encoder()


def explained(text, source, target, **settings):
    """`fz.prompt --json` of an edit with both masks."""
    settings = {"threshold": 0.3, "blend_latents": 0.3} | settings
    edit, tokens = EditSettings(target, **settings), (text.tokens(source), text.tokens(target))
    plan = plan_edit(edit, *tokens, 10)
    return as_json(edit, plan, tokens[1], 10), plan


def columns(said):
    """token of the target -> {token of the source: weight}; a token's own map is under 'edit'."""
    out = {}
    for column in said["columns"]:
        weights = {int(i): w for i, w in column["source"].items()}
        out[column["token"]] = weights | ({"edit": column["edit"]} if column["edit"] else {})
    return out


# ---- where words begin and end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a  red\tcar\non\r\nsand", ["a", "red", "car", "on", "sand"]),
        ("a\u00a0red\u3000car\u2009on\u2028sand\u202f", ["a", "red", "car", "on", "sand"]),
        ("\n a red car \n", ["a", "red", "car"]),
        ("best quality,cat,bench", ["best", "quality,", "cat,", "bench"]),
        ("girl,red;wet/dry|big", ["girl,", "red;", "wet/", "dry|", "big"]),
        ("猫、犬。赤い　車", ["猫、", "犬。", "赤い", "車"]),
        ("cat—dog…bird", ["cat—", "dog…", "bird"]),
        ('a car(red) "big",dog', ["a", "car", "(red)", '"big",', "dog"]),
        ("« chat »,chien", ["«", "chat", "»,chien"]),
        ("navy-blue rock'n'roll don’t U.S. 8k.png", ["navy-blue", "rock'n'roll", "don’t", "U.S.", "8k.png"]),
        ("1,000 cats at 12:30, 1/2", ["1,000", "cats", "at", "12:30,", "1/2"]),
        ("a #1 @home R&B snake_case c++", ["a", "#1", "@home", "R&B", "snake_case", "c++"]),
        ("👩\u200d🚀 cat\u200bdog", ["👩\u200d🚀", "cat\u200bdog"]),
        ("a <|endoftext|> b", ["a", "<|endoftext|>", "b"]),
        ("...", ["..."]),
        ("", []),
        (" \n\u3000", []),
    ],
)
def test_where_words_begin_and_end(sentence, expected):
    assert words.split(sentence) == expected
    assert [sentence[start:end] for start, end in words.spans(sentence)] == expected


@pytest.mark.parametrize(
    ("word", "bare"),
    [("Cat,", "cat"), ("“Big”", "big"), ("—", "—"), ("CAFE\u0301", "café"), ("\u200bcat\ufeff", "cat"),
     ("(navy-blue)", "navy-blue"), ("#1", "1"), ("don't", "don't"), ("¿Qué?", "qué"), ("😀", "😀"), ("'s", "s")],
)  # fmt: skip
def test_how_words_are_compared(word, bare):
    assert words.bare(word) == bare


def test_apostrophes_of_both_kinds_are_one():
    assert words.bare("dog\u2019s") == words.bare("dog's") == "dog's"
    assert words.occurrences("", words.split("the dog\u2019s bowl"), "dog's") == [1]


SENTENCES = (
    "a red car", "a\tred\n car\u3000on\u00a0sand", "best quality,cat,bench", "don't stop the rock'n'roll",
    "a labradoodle, a swarovski cat; 猫、犬。", "😀 cat's (red) dog", "CAFE\u0301 é", "1,000 cats—12:30", "",
    "a <|endoftext|> cat", "\u200bcat\u200b", "ﬁn ½ ² Ⅷ",
)  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_token_ids_are_those_of_the_whole_prompt(text, sentence):
    tokens = text.tokens(sentence)
    assert list(tokens.ids) == transformers_tokenizer()(sentence, padding="max_length", max_length=LENGTH)["input_ids"]
    positions = [p for word in tokens.words for p in word.positions]
    assert positions == list(range(1, tokens.used - 1)), "every token is one word's"
    for word in tokens.words:
        assert word.core and set(word.core) <= set(word.positions)


def test_a_prompt_of_any_length_is_answered_at_once(text, capfd):
    with pytest.raises(FzError, match="expected at most 77.*fall off") as caught:
        text.tokens("car, " * 20_000)
    assert len(str(caught.value)) < 500 and capfd.readouterr().err == ""


# ---- words that differ (masks) --------------------------------------------------------------------------------

MASKS = [
    ("a red car and a red ball", "a blue car and a red ball", [2], [2]),
    ("a red car and a red ball", "a red car and a blue ball", [6], [6]),
    ("a man riding a horse next to a man on a bike", "a man riding a horse next to a woman on a bike", [9], [9]),
    ("a cat and a cat and a cat", "a cat and a dog and a cat", [5], [5]),
    ("a cat and a cat and a cat", "a dog and a cat and a dog", [2, 8], [2, 8]),
    ("a red red red car", "a red blue red car", [3], [3]),
    ("an apple on a table next to an egg", "a pear on a table next to an egg", [2], [2]),
    ("a car on the road", "the car on a road", [], []),
    ("a silver jeep, on sand", "a Porsche car on sand.", [2, 3], [2, 3]),
    ("best quality,cat,bench", "best quality,dog,bench", [4], [4]),
    ("best\u3000quality\u00a0cat\nbench", "best quality dog\tbench", [3], [3]),
    ('a "red" car', "a “blue” car", [3], None),
    ("a cat and a dog", "a dog and a cat", [2, 5], [2, 5]),
    ("a red car and a blue ball", "a blue ball and a red car", [2, 3, 6, 7], [2, 3, 6, 7]),
    ("a red car", "watercolor painting of a red car", [], [1, 2, 3]),
    ("a red car and a red ball", "a red ball", [2, 3, 4], []),
    ("a cat", "a cat and a cat", [], [3, 5]),
    ("a navy-blue car", "a red car", [2, 3, 4], [2]),
    ("a CAT", "a cat!", [], []),
    ("😀 cat", "😀 dog", None, None),
    ("猫 と 犬", "猫 と 車", None, None),
]


@pytest.mark.parametrize(("source", "target", "gone", "come"), MASKS, ids=lambda v: v if isinstance(v, str) else "")
def test_masks_follow_the_words_that_differ_where_they_stand(text, source, target, gone, come):
    last = [text.tokens(sentence).words[-1].core for sentence in (source, target)]
    said, plan = explained(text, source, target)
    blended = said["latent_blend_tokens"]
    if gone is None:
        # the last word, however many tokens it has
        assert blended == [list(last[0]), list(last[1])] and said["mask_tokens"] == list(last[0])
        return
    assert said["mask_tokens"] == gone
    if come is not None:
        assert blended == [gone, come] or not (gone or come)
    assert align.weights(gone).equal(plan.region.mask_words) if gone else plan.region.mask_words is None


def test_masks_follow_the_words_of_the_sentence_whose_attention_is_fused(text):
    overlay = {"clip.path": "a.mp4", "source": "a red car", "edits.0.target": "photo of a red boat"}
    overlay |= {"edits.0.threshold": 0.3, "reconstruction_prompt": "photo of a red car"}
    for attention, car in (("inversion", 3), ("reconstruction", 5)):
        settings = build(overlay, {"attention": attention, "edits.0.blend_words": (("car",), ())})
        (plan,) = plan_edits(settings, text, lambda line: None)
        assert plan.region.mask_words.nonzero().flatten().tolist() == [car]


def test_named_words_make_masks_without_their_punctuation(text):
    source = "a jeep, a man and a jeep on sand, wet sand"
    said, _ = explained(text, source, "a car, a man and a car on sand", blend_words=(("jeep", "wet"), ("car",)))
    jeeps = [p for word in text.tokens(source).words if words.bare(word.text) in ("jeep", "wet") for p in word.core]
    assert said["mask_tokens"] == jeeps and len(jeeps) == 3
    assert align.word_positions(text.tokens("a jeep, on"), "jeep,") == [2, 3], "named with it"
    assert align.word_positions(text.tokens("a big\u3000red\ncar"), "red car") == [3, 4]
    assert align.word_positions(text.tokens("quality,cat"), "cat") == [3]
    with pytest.raises(FzError, match="Did you mean 'jeep'"):
        align.word_positions(text.tokens("a jeep, on"), "jepe")


def test_a_background_is_what_no_differing_word_is(text):
    said, plan = explained(
        text, "a red car and a red ball", "a blue car and a red ball", threshold=None, blend_latents=None,
        keep_background=True,
    )  # fmt: skip
    assert plan.region.background.nonzero().flatten().tolist() == said["mask_tokens"] == [2]


# ---- replacement and refinement -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a jeep, on sand", "a jeep on sand", {1: {1: 1}, 2: {2: 1}, 3: {4: 1}, 4: {5: 1}}),
        ("a jeep on sand", "a jeep, on sand", {2: {2: 1}, 3: {2: 1}, 4: {3: 1}}),
        ("girl,red", "girl,navy-blue", {1: {1: 1}, 2: {2: 1}, 3: {3: 1}, 4: {3: 1}, 5: {3: 1}}),
        ("girl,navy-blue", "girl,red", {1: {1: 1}, 2: {2: 1}, 3: {3: 1 / 3, 4: 1 / 3, 5: 1 / 3}}),
        ('a "jeep on', 'a jeep" on', {2: {3: 1}, 3: {3: 1}, 4: {4: 1}}),
        ("(red) car", "red, car", {1: {2: 1}, 2: {3: 1}, 3: {4: 1}}),
        ("navy-blue", "navy-red", {1: {1: 1}, 2: {2: 1}, 3: {3: 1}}),
        ("blue-navy", "big-blue-navy", {3: {1: 1}, 4: {2: 1}, 5: {3: 1}}),
        ("best quality,cat,bench", "best quality,dog,bench", {i: {i: 1} for i in range(1, 7)}),
        ("a cat", "a labradoodle", {2: {2: 1}, 3: {2: 1}, 4: {2: 1}}),
        ("a labradoodle", "a cat", {2: {2: 1 / 3, 3: 1 / 3, 4: 1 / 3}}),
        ("a red car and a blue ball", "a blue ball and a red car", {i: {i: 1} for i in range(1, 8)}),
    ],
)
def test_a_kept_word_keeps_its_own_tokens(text, source, target, expected):
    said, plan = explained(text, source, target, align="auto")
    assert said["align"] == "replace"
    got = columns(said)
    for token, weights in expected.items():
        assert got[token] == pytest.approx(weights, abs=1e-5), token
    assert torch.allclose(plan.fusion.mapper.sum(0), torch.ones(LENGTH))


@pytest.mark.parametrize("mark", [",", ".", "!", '"', "”", ")", "…", "。", ", —"])
def test_whatever_punctuation_a_kept_word_has_it_is_kept(text, mark):
    """Each word of the target that the source has takes its own tokens and no punctuation's."""
    for source, target in (
        (f"a swarovski{mark} cat", "a swarovski cat"),
        ("a swarovski cat", f"a swarovski{mark} cat"),
    ):
        tokens = text.tokens(source), text.tokens(target)
        if len(tokens[0].words) != len(tokens[1].words):
            continue
        mapper = align.replacement(*tokens)
        for old, new in zip(tokens[0].words, tokens[1].words, strict=True):
            assert mapper[list(old.core)][:, list(new.core)].equal(torch.eye(len(old.core)))
        rows = describe.columns(plan_edit(EditSettings(target), *tokens, 10).fusion, *tokens, 10)
        assert {c.what for c in rows} == {"kept"}


@pytest.mark.parametrize(
    ("source", "target", "chosen"),
    [
        ("a man is riding a horse", "a robot riding a white horse", "refine"),
        ("a man riding a horse", "a robot riding a horse", "replace"),
        ("a cat and a dog", "a dog and a cat", "replace"),
        ("a big red car", "a red car moving", "refine"),
        ("the cat on the mat", "on the mat the cat", "refine"),
        ("a red car", "a red car", "replace"),
        ("a red car", "a big red car", "refine"),
        ("an apple on a table", "a pear on the road", "replace"),
        ("best quality,cat", "cat,best quality", "refine"),
    ],
)
def test_auto_replaces_where_words_keep_their_places(text, source, target, chosen):
    said, plan = explained(text, source, target)
    assert said["align"] == plan.align == chosen
    old, new = text.tokens(source), text.tokens(target)
    for word in new.words:
        for token in word.core:
            taken = columns(said)[token]
            if chosen == "refine":
                # the word itself, or nothing
                assert taken == {"edit": 1} or {new.ids[token]} == {old.ids[i] for i in taken}
    assert explained(text, source, target, align="refine")[0]["align"] == "refine"


def test_a_choice_that_is_explicit_stands_and_is_noted(text):
    source, target = "a man is riding a horse", "a robot riding a white horse"
    said, plan = explained(text, source, target, align="replace", lenient=True)
    assert said["align"] == "replace" and columns(said)[3] == {3: 1}
    assert any("'riding' takes the attention of 'is'" in note for note in plan.notes)
    assert not any(
        "takes the attention" in n for n in explained(text, "a red car", "a blue car", align="replace")[1].notes
    )
    said, plan = explained(text, "a red car", "a car", align="replace", lenient=True)
    assert said["align"] == "refine" and any("refinement, not replacement" in note for note in plan.notes)
    with pytest.raises(FzError, match="Use --refine"):
        explained(text, "a red car", "a car", align="replace")


# ---- what is said --------------------------------------------------------------------------------------------


def test_json_of_an_edit(text):
    said, _ = explained(
        text, "a red car", "a blue car", reweight={"blue": 3}, cross_replace=0.5, self_replace=(0.2, 0.6)
    )
    assert said == {
        "target": "a blue car",
        "align": "replace",
        "mask_tokens": [2],
        "latent_blend_tokens": [[2], [2]],
        "columns": [
            {"token": 1, "word": "a", "source": {"1": 1.0}, "edit": 0.0},
            {"token": 2, "word": "blue", "source": {"2": 3.0}, "edit": 0.0},
            {"token": 3, "word": "car", "source": {"3": 1.0}, "edit": 0.0},
        ],
        "self_steps": [2, 6],
        "cross_steps": [0, 5],
    }
    said, _ = explained(text, "a car", "a red car", reweight=(("red", 2.0),), cross_replace_words={"car": 0.0})
    assert columns(said) == {1: {1: 1}, 2: {"edit": 2}, 3: {"edit": 1}}
    said, _ = explained(text, "a car", "a red car", align="plain", threshold=None)
    assert (said["align"], said["mask_tokens"], said["self_steps"], said["cross_steps"]) == (
        "plain",
        [],
        [0, 0],
        [0, 0],
    )
    assert columns(said) == {1: {"edit": 1}, 2: {"edit": 1}, 3: {"edit": 1}}
    said, _ = explained(text, "a red car", "a blue car", threshold=None, blend_latents=None)
    assert (said["mask_tokens"], said["latent_blend_tokens"]) == ([], [[], []])


def test_the_command_prints_a_line_of_json_an_edit(capsys):
    argv = ["--source", "a red car and a red ball", "--target", "a blue car and a red ball", "--target", "a car"]
    assert prompt.main(["--json", *argv, "--threshold", "0.3", "--steps", "10"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["mask_tokens"], first["align"], second["align"]) == ([2], "replace", "refine")
    assert first["self_steps"] == [0, 8] and first["cross_steps"] == [0, 7]
    assert prompt.main(["--json", *argv, "--method", "ddim"]) == 0
    assert {json.loads(line)["align"] for line in capsys.readouterr().out.splitlines()} == {"plain"}
    assert prompt.main([*argv, "--threshold", "0.3", "--steps", "10"]) == 0
    assert "mask of red (2)" in capsys.readouterr().out


def test_pictures_of_a_word_that_is_there_twice_are_its_own(tmp_path, text, monkeypatch):
    tokens, drawn, real = text.tokens("a red car and a red ball"), [], pictures.blend_mask
    monkeypatch.setattr(
        pictures, "blend_mask", lambda maps, weights, *rest: drawn.append(weights) or real(maps, weights, *rest)
    )
    settings = build({"clip.path": "c", "source": tokens.prompt, "edits.0.target": "a car"})
    frames, plans = torch.zeros(1, 3, 32, 32), [plan_edit(settings.edits[0], tokens, text.tokens("a car"), 10)]
    shown = pictures.WordMaps(frames=frames, maps=torch.ones(1, 16, LENGTH), size=(4, 4))
    pictures.write_pictures(tmp_path, settings.edits, plans, tokens, shown)
    assert [weights.nonzero().flatten().tolist() for weights in drawn] == [[i] for i in range(1, 8)]


def test_removal_and_reports_split_as_tokens_do():
    assert without("a\u3000red\u00a0car and\na dog", "red car") == "a dog"
    assert without("best quality,cat,bench", "cat") == "best quality, bench"
    edits = [{"target": "a  blue\ncar"}]
    assert first_word(words.split("a  red\ncar"), edits, ["a", "red", "car"]) == 1


def test_the_miniature_is_asked_by_words():
    class Bundled:
        checkpoint = tokenizer = model_config = None

    said, _ = explained(text_of(Bundled), "a red car\nand a red\u3000ball", "a blue car and a red ball")
    assert said["mask_tokens"] == [2] and mini.not_learned(["a red car,\n\u3000a red car"]) == []


# ---- weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reweight", (("blue", 1e308),), "from -10000 to 10000"),
        ("reweight", {"blue": float("nan")}, "from -10000 to 10000"),
        ("reweight", {"blue": "5"}, "from -10000 to 10000"),
        ("reweight", {"blue": True}, "from -10000 to 10000"),
        ("reweight", "blue=5", "expected words and their values"),
        ("reweight", 5, "expected words and their values"),
        ("reweight", [("blue", 5, 6)], "expected words and their values"),
        ("reweight", {3: 5}, "expected words and their values"),
        ("enhance_factor", 1e308, "at most 10000"),
        ("cross_replace_words", {"blue": "often"}, "expected a share"),
        ("cross_replace_words", [3], "expected words and their values"),
        ("blend_words", 3, "expected the source's words"),
        ("blend_words", [[3], ["car"]], "expected the source's words"),
        ("blend_words", [["a"], ["b"], ["c"]], "expected the source's words"),
        ("target", 3, "expected a sentence"),
        ("target", None, "expected a sentence"),
    ],
)
def test_values_from_python_that_cannot_be(name, value, said):
    with pytest.raises(FzError, match=said):
        build({"clip.path": "c", "source": "a red car", "edits.0.target": "a blue car", f"edits.0.{name}": value})


def test_values_from_python_that_can_be():
    given = {"clip.path": "c", "source": "a red car", "edits.0.target": "a blue car"}
    edit = build(given | {"edits.0.reweight": {"red": 5}, "edits.0.cross_replace_words": {"car": 0.3},
                          "edits.0.blend_words": ["red", ["blue"]]}).edits[0]  # fmt: skip
    assert edit.reweight == (("red", 5),) and edit.cross_replace_words == (("car", (0.0, 0.3)),)
    assert edit.blend_words == (("red",), ("blue",))
    for source in (3, None, ["a car"]):
        with pytest.raises(FzError, match="source: got"):
            build(given | {"source": source})


def test_a_weight_that_no_number_holds_is_one_line(capsys):
    argv = ["--source", "a red car", "--target", "a blue car", "--reweight", "blue=1e308"]
    assert prompt.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "reweight: got 1e+308" in err


NO_WORD = ("...", "!?", " — ,", "+$|", "\u200b", "\u200d\ufe0f", "\u3164\u2800", "\x00", "\ue000")
WITH_CONTROL = ("a red\x00 car", "a \x1b[31mred car", "a\x7f car")


@pytest.mark.parametrize("sentence", [*NO_WORD, *WITH_CONTROL], ids=ascii)
@pytest.mark.parametrize("way", ["run", "YAML", "prompt", "CSV", "jobs", "tune", "API", "form"])
@pytest.mark.parametrize("which", ["target", "source"])
def test_a_sentence_without_a_word_is_refused(which, way, sentence, tmp_path, capsys, monkeypatch):
    """As an empty one, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    said = {"source": "a red car", "target": "a blue car", which: sentence}
    flags = [f"--{name}={value}" for name, value in said.items()]
    command, argv = {
        "run": (run, flags),
        "YAML": (run, ["--config", "a.yaml", "--checkpoint", "nowhere"]),
        "prompt": (prompt, flags),
        "CSV": (batch, ["jobs.csv"]),
        "jobs": (batch, ["jobs.yaml"]),
        "tune": (tune, [f"--prompt={sentence}", "--checkpoint=nowhere", "--video=a.mp4", "--out=t"]),
        "API": (None, []),
        "form": (None, []),
    }[way]
    if way == "YAML":
        pipeline = {"editing_prompts": [said["target"]]}
        content = {"dataset_config": {"path": "a", "prompt": said["source"]}, "editing_config": pipeline}
        (tmp_path / "a.yaml").write_text(json.dumps(content))
    (tmp_path / "jobs.yaml").write_text(json.dumps({"jobs": [{"video": "a.mp4", **said}]}))
    with open(tmp_path / "jobs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["video", *said], ["a.mp4", *said.values()]])
    if way == "API":
        with pytest.raises(FzError, match=f"^{which}: got "):
            build({"clip.path": "a", "source": said["source"], "edits.0.target": said["target"]})
    elif way == "form":
        assert sentence in WITH_CONTROL or forms.sentence({"target": sentence, "remove": "", "enhance": ""}) == ""
    else:
        assert command.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert any(
            words in err for words in ("which has no word", "an empty sentence", "control character", "null bytes")
        ), err
        assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("sentence", ["🚗", "車", "a", "7", "á", "a car ✨", "👩\u200d🚀 walks"], ids=ascii)
def test_a_sentence_of_one_sign_is_none_without_words(sentence):
    assert EditSettings(sentence).target == sentence
