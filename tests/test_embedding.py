"""Textual inversion, clip skip and A1111's emphasis: layouts of files, one word of several tokens through everything
that knows words, and parity with diffusers.
"""

import dataclasses
import json
import shlex

import pytest
import torch
from random_weights import numbers, relative
from safetensors.torch import save_file

import fz
from fz.errors import FzError
from fz.prompts.emphasis import emphasised, notes_on
from fz.prompts.plan import plan_edit
from fz.run import main
from fz.settings.command import command
from fz.settings.config import EditSettings
from fz.settings.parse import parse
from fz.weights.changes import Changes, read_words
from fz.weights.embedding import read_embedding
from fz.weights.load import load_checkpoint

pytest_plugins = ["golden_model"]
WIDTH = 32


@pytest.fixture(scope="module")
def vectors():
    return numbers(7, 3, WIDTH)


def a1111(vectors, **more):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "my-cat", "step": 3, **more}


LAYOUTS = {
    "A1111": (lambda v: a1111(v), "pt", "my-cat file"),
    "A1111, called as its file": (lambda v: a1111(v, name="File"), "pt", "file"),
    "A1111, of two words": (lambda v: a1111(v, name="my style v1.0"), "pt", "file"),
    "A1111, a star": (lambda v: a1111(v, name="*"), "pt", "file"),
    "A1111, unnamed": (lambda v: {"string_to_param": {"*": v}}, "pt", "file"),
    "A1111, safetensors": (lambda v: {"emb_params": v}, "safetensors", "file"),
    "the first code's": (lambda v: {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(v)})}, "pt",
                         "file"),
    "diffusers": (lambda v: {"<cat-toy>": v}, "bin", "<cat-toy>"),
    "diffusers, safetensors": (lambda v: {"<cat-toy>": v}, "safetensors", "<cat-toy>"),
    "diffusers, of two words": (lambda v: {"my cat": v}, "bin", "file"),
    "diffusers, a star": (lambda v: {"*": v}, "bin", "file"),
    "diffusers, a star in safetensors": (lambda v: {"*": v}, "safetensors", "file"),
    "half precision": (lambda v: {"<cat-toy>": v.half()}, "safetensors", "<cat-toy>"),
    "eight bits": (lambda v: {"<cat-toy>": v.to(torch.float8_e4m3fn)}, "safetensors", "<cat-toy>"),
}  # fmt: skip


def write(content, path):
    if path.suffix == ".safetensors":
        save_file({k: t.contiguous() for k, t in content.items()}, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, vectors, tmp_path):
    made, ending, words = LAYOUTS[name]
    file = write(made(vectors), tmp_path / f"file.{ending}")
    learned = read_embedding(file)
    dtype = {"half precision": torch.half, "eight bits": torch.float8_e4m3fn}.get(name, torch.float32)
    expected = vectors.to(dtype).float()
    assert learned.words == tuple(words.split()) and torch.equal(learned.vectors, expected)
    assert not learned.vectors.requires_grad
    assert read_embedding(file, "<other>").words == ("<other>",)


def test_one_vector(tmp_path):
    file = write({"<cat>": numbers(1, WIDTH)}, tmp_path / "cat.bin")
    assert read_embedding(file).vectors.shape == (1, WIDTH)


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


BAD = {
    "two words": (lambda: {"<a>": numbers(1, 4), "<b>": numbers(2, 4)}, "bin", "holds 2 embeddings"),
    "no tensor": (lambda: {"<a>": 3}, "bin", "holds 0 embeddings"),
    "a list": (lambda: [numbers(1, 4)], "pt", "holds list"),
    "nested": (lambda: {"<a>": {"b": numbers(1, 4)}}, "pt", "holds 0 embeddings"),
    "params that are none": (lambda: {"string_to_param": 3}, "pt", "holds 0 embeddings"),
    "for XL": (lambda: {"clip_l": numbers(1, 4), "clip_g": numbers(2, 4)}, "safetensors", "Stable Diffusion XL"),
    "for 2": (lambda: {"<a>": numbers(1, 2, 1024)}, "bin", "is for Stable Diffusion 2 .1024 wide"),
    "a picture": (lambda: {"<a>": numbers(1, 2, 3, 4)}, "bin", "holds 2×3×4 of float32"),
    "whole numbers": (lambda: {"<a>": torch.ones(2, 4, dtype=torch.int64)}, "bin", "of int64"),
    "two numbers a byte": (
        lambda: {"<a>": torch.zeros(2, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
        "bin",
        "numbers of float4_e2m1fn_x2, two a byte",
    ),
    "nothing in it": (lambda: {"<a>": torch.zeros(0, 4)}, "bin", "holds 0×4"),
    "NaN": (lambda: {"<a>": torch.full((2, 4), float("nan"))}, "bin", "NaN or infinity"),
    "NaN in 8 bits": (
        lambda: {"<a>": torch.full((2, 4), float("nan")).to(torch.float8_e4m3fn)},
        "bin",
        "NaN or infinity",
    ),
    "longer than a prompt": (lambda: {"<a>": numbers(1, 76, 4)}, "bin", "76 vectors, expected at most 75"),
    "a LoRA": (lambda: {"x.lora_up.weight": numbers(1, 4), "x.lora_down.weight": numbers(1, 4)}, "bin", "is a LoRA"),
    "code": (Runs, "pt", "Refused, since it could run code"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(case, tmp_path):
    """Before a model is read: there is none."""
    made, ending, expected = BAD[case]
    file = write(made(), tmp_path / f"file.{ending}")
    with pytest.raises(FzError, match=expected) as error:
        load_checkpoint("no/checkpoint/here", changes=Changes(embedding=((file, None),)))
    assert str(error.value).startswith("embedding: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"\x80\x02", b"<html>", b"words"])
def test_files_that_are_none(content, tmp_path):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(FzError, match="^embedding: "):
        read_embedding(tmp_path / "file.pt")


def test_a_file_without_one_word(tmp_path):
    for name, content, expected in (
        ("my own.pt", a1111(numbers(1, 4), name="my cat"), "'my cat' and 'my own', expected one word"),
        ("my own.pt", a1111(numbers(1, 4), name=None), "'my own', expected one word"),
        ("my own.bin", {"my cat": numbers(1, 4)}, "'my cat' and 'my own', expected one word. Choose one, as"),
        ("my own.safetensors", {"emb_params": numbers(1, 4)}, "'my own', expected one word"),
    ):
        with pytest.raises(FzError, match=f"^embedding: .*{expected}"):
            read_embedding(write(content, tmp_path / name))
        assert read_embedding(tmp_path / name, "<cat>").words == ("<cat>",)


# ---- words ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(models, vectors, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("words")
    files = (write({"<cat-toy>": vectors}, tmp_path / "a.bin"), write({"blob": vectors[:1] * 2}, tmp_path / "b.bin"))
    return load_checkpoint(models / "tiny_sd", changes=Changes(embedding=tuple((f, None) for f in files))).text


@pytest.mark.parametrize(
    ("prompt", "at"),
    [
        ("a <cat-toy> on a mat", (2, 3, 4)),
        ("<cat-toy>", (1, 2, 3)),
        ("a red <CAT-TOY>, on a mat", (3, 4, 5)),
        ("a (<cat-toy>) on a mat", (3, 4, 5)),
        ("a <cat-toy>", (2, 3, 4)),
    ],
)
def test_one_word_several_tokens(prompt, at, text):
    tokens = text.tokens(prompt)
    word = next(word for word in tokens.words if "cat-toy" in word.text.lower())
    first = text.learned["<cat-toy>"][0]
    assert word.core == at and [tokens.ids[p] for p in at] == [first, first + 1, first + 2]
    # every token belongs to a word, and each to one
    of_words = [p for word in tokens.words for p in word.positions]
    assert sorted(of_words) == list(range(1, tokens.used - 1))


def test_either_word_is_the_same(models, vectors, tmp_path):
    files = (write(a1111(vectors, name="bad_prompt"), tmp_path / "bad_prompt_version2.pt"),
             write({"<cat>": vectors[:1]}, tmp_path / "car.bin"))  # fmt: skip
    text = load_checkpoint(models / "tiny_sd", changes=Changes(embedding=tuple((f, None) for f in files))).text
    first, second = (text.tokens(f"a {word} car") for word in ("bad_prompt", "bad_prompt_version2"))
    assert first.ids == second.ids and first.ids[2:5] == text.learned["bad_prompt"]
    assert torch.equal(*text.encode(["a bad_prompt car", "a bad_prompt_version2 car"]))
    # a word of the prompt that is a diffusers file's name stays what it was
    plain = load_checkpoint(models / "tiny_sd").text
    assert text.tokens("a red car").ids == plain.tokens("a red car").ids
    assert text.unused(["a Bad_Prompt_Version2"]) == [["<cat>"]]
    assert text.unused(["a <CAT>", ""]) == [["bad_prompt", "bad_prompt_version2"]]
    assert text.unused(["<cat>", "bad_prompt"]) == [] == plain.unused(["a"])


def test_a_second_word_of_two_files_is_neithers(vectors, tmp_path):
    given = []
    for folder, name, own in (("1", "x", "one"), ("2", "X", "two"), ("3", "one", "three"), ("4", "y", "four")):
        (tmp_path / folder).mkdir()
        given.append((write(a1111(vectors, name=own), tmp_path / folder / f"{name}.pt"), None))
    assert [learned.words for learned in read_words(given)] == [("one",), ("two",), ("three",), ("four", "y")]


def test_other_words_are_as_before(text, models):
    plain = load_checkpoint(models / "tiny_sd").text
    for prompt in (
        "",
        "a blobby car",
        "my_blob",
        "a cat-toy on a mat",
        "blobs",
        "  a  red\tcar ",
        "a red car, driving",
    ):
        assert text.tokens(prompt).ids == plain.tokens(prompt).ids, prompt
        assert torch.equal(text.encode([prompt]), plain.encode([prompt]))
    assert text.tokens("a blob car").ids != plain.tokens("a blob car").ids
    assert len(text.tokens("a blob. blob").words) == 3


def test_alignment_reweighting_and_masks(text):
    source, target = text.tokens("a red car on a road"), text.tokens("a red <cat-toy> on a road")
    edit = EditSettings(target.prompt, threshold=0.3, blend_words=(("car",), ()), reweight=(("<cat-toy>", 3.0),))
    plan = plan_edit(edit, source, target, 10)
    fusion = plan.fusion
    # 'car' is its three tokens' counterpart, and the words after it are theirs, three places on
    assert plan.align == "replace"
    assert [int(i) for i in fusion.mapper.argmax(0)[: target.used]] == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    assert fusion.equalizer[[3, 4, 5]].tolist() == [3.0] * 3 and fusion.equalizer[6] == 1
    turned = plan_edit(EditSettings(source.prompt, threshold=0.3), target, source, 10)
    assert turned.region.mask_words.nonzero().flatten().tolist() == [3, 4, 5]


def test_as_diffusers_encodes_it(models, vectors, tmp_path):
    """Its words are 'blob blob_1 blob_2' in its tokenizer; the embeddings are the same."""
    from test_lora import pipeline

    file = write({"blob": vectors}, tmp_path / "blob.safetensors")
    pipe = pipeline(models / "tiny_sd")
    pipe.load_textual_inversion(str(tmp_path), weight_name="blob.safetensors", token="blob")
    ours = load_checkpoint(models / "tiny_sd", changes=Changes(embedding=((file, None),))).text
    for prompt in ("a red blob on a road", "blob", "a car, blob"):
        with torch.no_grad():
            expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        assert relative(ours.encode([prompt]), expected) < 1e-5, prompt


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_as_diffusers_skips(skip, models):
    from test_lora import pipeline

    pipe = pipeline(models / "tiny_sd")
    # where it looks for the last norm; transformers has dropped the name
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    with torch.no_grad():
        expected, _ = pipe.encode_prompt("a red car", "cpu", 1, False, clip_skip=skip - 1)
    ours = load_checkpoint(models / "tiny_sd", changes=Changes(clip_skip=skip))
    assert relative(ours.text.encode(["a red car"]), expected) < 1e-5
    assert ("clip skip 2" in ours.report) == (skip == 2)


def test_clip_skip_beyond_the_model(models):
    with pytest.raises(FzError, match="clip_skip: got 3, expected at most 2"):
        load_checkpoint(models / "tiny_sd", changes=Changes(clip_skip=3))
    with pytest.raises(FzError, match="clip_skip: got 0, expected a whole number"):
        fz.load(str(models / "tiny_sd"), clip_skip=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("<x>", "<X>"), "are both for '<X>'"),
        (("my cat",), "'my cat', expected one word"),
        (("a,b",), "expected one word"),
    ],
)
def test_words_that_cannot_be(words, expected, vectors, tmp_path):
    files = [write({"<y>": vectors}, tmp_path / f"{i}.bin") for i in range(len(words))]
    with pytest.raises(FzError, match=expected):
        load_checkpoint("none", changes=Changes(embedding=tuple(zip(files, words, strict=True))))


def test_another_width(models, tmp_path):
    file = write({"<y>": numbers(1, 2, 48)}, tmp_path / "y.bin")
    with pytest.raises(FzError, match="is 48 wide, the text encoder 32"):
        load_checkpoint(models / "tiny_sd", changes=Changes(embedding=((file, None),)))


# ---- the command line ----------------------------------------------------------------------------------------


def test_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.pt").write_bytes(b"")
    given = ["--checkpoint", "sd", "--video", "v.mp4", "--source", "a", "--target", "b", "--lora", "x.safetensors=0.5",
             "--lora", "y=z.pt", "--lora", "w.pt=-1", "--embedding", "a=b.pt", "--embedding", "c.pt=<c>", "--embedding",
             "d.pt", "--clip-skip", "2"]  # fmt: skip
    settings = parse(given).settings
    assert settings.lora == (("x.safetensors", 0.5), ("y=z.pt", 1.0), ("w.pt", -1.0))
    assert settings.embedding == (("a=b.pt", None), ("c.pt", "<c>"), ("d.pt", None)) and settings.clip_skip == 2
    said = command(json.loads(json.dumps(dataclasses.asdict(settings))))
    again = parse(shlex.split(said)[3:]).settings
    assert (again.lora, again.embedding, again.clip_skip) == (settings.lora, settings.embedding, 2)
    with pytest.raises(FzError, match="lora: got 500.0 for x"):
        parse([*given, "--lora", "x=500"])


@pytest.mark.parametrize("flag", ["lora", "embedding"])
def test_an_absent_file_is_said_before_a_model_is_looked_for(flag, models, capsys):
    given = ["--checkpoint", "none", "--video", str(models / "clips/car128"), "--source", "a", "--target", "b"]
    assert main([*given, f"--{flag}", "gone.pt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fz: {flag}: gone.pt does not exist. Expected a .safetensors, .pt or .bin file, or a Hub ")


def test_prompt_shows_a_learned_word(models, vectors, tmp_path, capsys):
    from fz.prompt import main as prompt

    file = write(a1111(vectors), tmp_path / "x.pt")
    code = prompt(["--checkpoint", str(models / "tiny_sd"), "--source", "a red car", "--target", "a red my-cat",
                   "--embedding", f"{file}=<toy>", "--target", "a red <toy> [dog]"])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0 and "<toy>" in said and "3,4,5" in said
    assert "target 1: '[dog]' is read as it is written, brackets too; to weight it, write 'dog' and pass" in said
    assert "--reweight dog=0.91" in said


def test_an_embedding_whose_word_no_prompt_has_is_said(models, vectors, tmp_path, capsys):
    from fz.prompt import main as prompt

    file = write(a1111(vectors, name="bad_prompt"), tmp_path / "bad_prompt_version2.pt")
    words = ["--checkpoint", str(models / "tiny_sd"), "--source", "a red car", "--target", "a blue car"]
    run = [*words, "--video", str(models / "clips/car128"), "--frames", "1", "--size", "64", "--device", "cpu",
           "--threads", str(torch.get_num_threads()), "--cache", "none", "--dry-run"]  # fmt: skip
    said = "embedding: no prompt has its word 'bad_prompt' or 'bad_prompt_version2', so that it changes nothing."
    for negative, expected in (
        ("ugly", said),
        ("bad prompt, bad_prompt_version", said),
        ("bad_prompt", None),
        ("bad_prompt_version2", None),
    ):
        for start in (lambda argv: main([*run, *argv]), lambda argv: prompt([*words, *argv])):
            assert start(["--embedding", file, "--negative", negative]) == 0
            out = capsys.readouterr().out
            assert expected in out if expected else "changes nothing" not in out


def test_the_miniature_knows_a_word_that_a_file_brings(tmp_path, capsys):
    from fz import mini

    width = json.loads((mini.FOLDER / "text_encoder/config.json").read_text())["hidden_size"]
    file = write(a1111(numbers(1, 1, width), name="zebra-car"), tmp_path / "file.pt")
    flags = [
        "--target",
        "a zebra-car moving on the sand",
        "--frames",
        "1",
        "--size",
        "64",
        "--cache",
        "none",
        "--dry-run",
    ]
    assert main([*flags, "--embedding", file]) == 0
    assert "does not know" not in capsys.readouterr().out
    assert main([*flags, "--embedding", f"{file}=other"]) == 0
    assert "the miniature does not know 'zebra-car'" in capsys.readouterr().out


# ---- emphasis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (dog:1.3) on a road", [("(dog:1.3)", "dog", 1.3)]),
        ("a (big dog: .5)", [("(big dog: .5)", "big dog", 0.5)]),
        ("a ((dog))", [("((dog))", "dog", 1.21)]),
        ("a [dog] and [[cat]]", [("[dog]", "dog", 0.909), ("[[cat]]", "cat", 0.826)]),
        ("a [cat:dog:0.5]", [("[cat:dog:0.5]", "cat:dog:0.5", None)]),
        ("a [cat|dog]", [("[cat|dog]", "cat|dog", None)]),
        ("a dog (on the left)", []),
        (r"a dog \(x:1.3\)", []),
        ("at 10:30 (see note: 3 dogs)", []),
    ],
)
def test_emphasis(prompt, found):
    got = [(a, b, None if c is None else round(c, 3)) for a, b, c in emphasised(prompt)]
    assert got == [(a, b, c) for a, b, c in found]


def test_what_is_said_of_emphasis():
    (line,) = notes_on("a (big dog:1.3)", "target 0", True)
    assert line == (
        "target 0: '(big dog:1.3)' is read as it is written, brackets too; to weight it, write 'big dog' and pass "
        "--reweight 'big dog=1.3'"
    )
    (line,) = notes_on("a (dog:1.3)", "source", False)
    assert line.endswith("write 'dog': only words of a target are weighted")
