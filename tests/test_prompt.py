"""fz.prompt says of every word what the edit's fusion does to it, and draws where the source's words are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fz import mini, prompt
from fz.preflight import text_of
from fz.prompts import describe
from fz.prompts.plan import plan_edit
from fz.results.words import WordMaps
from fz.settings.config import EditSettings

SOURCE, CAR = "a red car moving on the sand", "a blue car moving on the sand"


@pytest.fixture(scope="module")
def text():
    class Bundled:
        checkpoint = tokenizer = model_config = None

    return text_of(Bundled)


def told(text, target, steps=10, source=SOURCE, **settings):
    tokens = text.tokens(source), text.tokens(target)
    edit = EditSettings(target, **settings)
    plan = plan_edit(edit, *tokens, steps)
    return {c.word: c for c in describe.columns(plan.fusion, *tokens, steps)}, describe.describe(
        edit, plan, *tokens, steps
    )


def test_replacement(text):
    columns, lines = told(text, CAR, cross_replace=0.5, self_replace=(0.2, 0.6), threshold=0.3)
    assert list(columns) == CAR.split()
    assert (columns["blue"].what, columns["blue"].sources, columns["blue"].steps) == ("replaced", ("red",), (1, 5))
    assert {c.what for word, c in columns.items() if word != "blue"} == {"kept"}
    assert (
        lines[-1]
        == "  self-attention: the source's at steps 3-6 of 10, outside the mask of red (2), > 0.3 of its maximum"
    )
    assert any(line.split() == ["blue", "2", "replaced", "red", "1-5", "of", "10"] for line in lines)


def test_a_word_of_several_tokens_takes_one_of_fewer(text):
    columns, _ = told(text, "a red watercolor moving on the sand")
    assert len(columns["watercolor"].positions) > 1 and columns["watercolor"].sources == ("car",)
    assert columns["sand"].sources == ("sand",) and columns["sand"].positions != text.tokens(SOURCE).words[-1].positions


def test_refinement_and_weights(text):
    columns, lines = told(
        text,
        f"watercolor painting of {SOURCE}",
        align="refine",
        reweight=(("watercolor", 10.0), ("car", 0.5)),
        cross_replace=0.7,
    )
    assert {word for word, c in columns.items() if c.what == "new"} == {"watercolor", "painting", "of"}
    # a new word's own attention is always its own: its window matters for its weight alone
    assert (columns["watercolor"].weight, columns["watercolor"].steps) == (10, (1, 7)) and columns[
        "painting"
    ].steps is None
    assert (columns["car"].what, columns["car"].weight, columns["red"].weight) == ("kept", 0.5, 1)
    assert any("watercolor" in line and line.endswith("x10") for line in lines)
    lost = told(text, "a red car on the sand")[1]
    assert "  of the source, nothing takes: moving" in lost and not any("nothing takes" in line for line in lines)


def test_windows(text):
    columns, lines = told(
        text, CAR, cross_replace=0.5, cross_replace_words=(("blue", 0.0), ("car", (0.2, 1.0))), self_replace=0.0
    )
    assert (columns["blue"].what, columns["blue"].steps, columns["blue"].sources) == ("own", None, ())
    assert columns["car"].steps == (3, 10) and columns["a"].steps == (1, 5)
    assert lines[-1] == "  self-attention: the edit's own throughout"


def test_command_line_without_a_clip_computes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompt, "word_maps", lambda *_: pytest.fail("no clip was given"))
    assert prompt.main(["--source", SOURCE, "--target", CAR, "--target", "a car", "--refine.1", "--steps", "10"]) == 0
    said = capsys.readouterr().out
    assert (
        "edit 0: 'a blue car" in said
        and "edit 1: 'a car'" in said
        and "replaced   red" in said
        and not list(tmp_path.iterdir())
    )
    assert prompt.main(["--source", SOURCE, "--target", CAR, "--method", "ddim"]) == 0
    assert "method ddim fuses nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--source", SOURCE, "--target", CAR, "--reweight", "bleu=3"], "Did you mean 'blue'?"),
        (["--source", SOURCE, "--target", "a car", "--replace"], "Use --refine"),
        (["--source", SOURCE, "--target", CAR, "--map-steps", "0"], "--map-steps: got '0'"),
        (["--source", SOURCE, "--target", CAR, "--map-steps"], "--map-steps: got ''"),
        (
            ["--source", SOURCE, "--target", CAR, "--map-steps", "3"],
            "map-steps: changes nothing by itself, expected --vi",
        ),
        (["--threads", "1"], "got no sentences"),
        (["--source", SOURCE], "target: got none"),
        (["--sauce", SOURCE], "unknown flag --sauce"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_mistakes_are_one_line(argv, said, capsys):
    assert prompt.main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_pictures_of_a_clip(tmp_path, capsys, monkeypatch):
    """Attention of 'red' in the left half and of 'car' in one corner is drawn there, and so are their masks."""
    real = prompt.word_maps

    def maps(settings, steps, say):
        words = real(settings, steps, say)
        found, size = words.maps, words.size
        # a few steps of a model: a distribution over the tokens at every pixel
        assert (
            steps == 2
            and torch.allclose(found.sum(-1), torch.ones(()), atol=1e-4)
            and found.shape == (2, size[0] * size[1], 77)
        )
        found = torch.zeros(2, *size, 77)
        found[:, :, : size[1] // 2, 2], found[:, 0, 0, 3] = 1, 1
        return WordMaps(torch.zeros_like(words.frames), found.flatten(1, 2), size)

    monkeypatch.setattr(prompt, "word_maps", maps)
    argv = [
        "--source",
        SOURCE,
        "--target",
        CAR,
        "--edit",
        "shape",
        "--video",
        mini.example()["clip.path"],
        "--frames",
        "2",
    ]
    argv += ["--threads", "1", "--map-steps=2", "--out", str(tmp_path)]
    assert prompt.main(argv) == 0
    assert "9 pictures" in capsys.readouterr().out
    names = sorted(p.name for p in tmp_path.iterdir())
    words = SOURCE.split()
    assert names == sorted(
        [*(f"{i:02d}-{word}.png" for i, word in enumerate(words)), "all-words.png", "mask-edit-0.png"]
    )
    picture = np.asarray(Image.open(tmp_path / "mask-edit-0.png")).astype(int)
    first = picture[-mini.SIZE :, : mini.SIZE]
    # max-pooled by one: left of the middle it is edited, the last quarter never
    assert np.abs(first[:, :20] - first[0, 0]).max() == 0 and np.abs(first[:, -16:] - first[0, -1]).max() == 0
    assert np.abs(first[0, 0] - first[0, -1]).max() > 20
    # a program that asks for JSON gets the same pictures, and nothing but JSON on stdout
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        path.unlink()
    assert prompt.main([*argv, "--json"]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert json.loads(line)["target"] == CAR and "9 pictures" in said.err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_without_a_source_the_example_s_is_meant(capsys):
    """As in a run."""
    assert prompt.main(["--target", "a blue car moving on the sand"]) == 0
    said = capsys.readouterr().out
    assert "'a blue car moving on the sand'" in said and "red" in said
