"""CLIP's tokenizer against transformers' own: of every kind of folder that is about, sentence by sentence."""

import json
import random
import subprocess
import sys

import pytest
from tiny_model import WORDS, write_tokenizer
from transformers import CLIPTokenizer

from fz.errors import FzError
from fz.prompts.tokenizer import END, START
from fz.weights.tokenizer import load_tokenizer
from fz.weights.write import write_tokenizer as write_again

OF_OPENAI = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
MARKS_OF_OPENAI = {
    role: {"content": mark, **OF_OPENAI}
    for role, mark in {"bos_token": START, "eos_token": END, "unk_token": END}.items()
}
ODD = "'s 'LL ’t 1234 ½ é e\u0301 ﬁ İ ß 猫 кот 😀 👩\u200d👧 , ... !? <| |> <cat-toy> <STYLE> <style> </w>"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


def edit(file, change):
    content = json.loads(file.read_text()) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content))


def as_written(folder):
    pass


def as_of_openai(folder):
    """Marks with all of their fields, as in v1's own folders, and no list of added tokens."""
    for name in CONFIGS:
        edit(folder / name, lambda c: c.pop("added_tokens_decoder", None))
        edit(folder / name, lambda c: c.update(MARKS_OF_OPENAI))


def of_bare_files(folder):
    for name in CONFIGS:
        (folder / name).unlink()


def padded_otherwise(folder):
    as_of_openai(folder)
    for name in CONFIGS:
        edit(folder / name, lambda c: c.update(pad_token="!"))


def without_padding(folder):
    as_of_openai(folder)
    for name in CONFIGS:
        edit(folder / name, lambda c: c.update(pad_token=None))


def with_added_tokens(folder):
    """As a textual inversion of old leaves them."""
    as_of_openai(folder)
    count = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": count, "<Style>": count + 1}))


def with_numbered_tokens(folder):
    count = len(json.loads((folder / "vocab.json").read_text()))
    token = {"content": "<cat-toy>", "special": False, **OF_OPENAI}
    edit(folder / CONFIGS[0], lambda c: c["added_tokens_decoder"].update({str(count): token}))


def in_one_file(folder):
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    assert (folder / "tokenizer.json").is_file()


def in_one_file_alone(folder):
    in_one_file(folder)
    (folder / "tokenizer_config.json").unlink()


LAYOUTS = (
    as_written, as_of_openai, of_bare_files, padded_otherwise, without_padding, with_added_tokens,
    with_numbered_tokens, in_one_file, in_one_file_alone,
)  # fmt: skip


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.__name__)
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    request.param(made)
    return made


@pytest.fixture(scope="module")
def both(folder):
    return load_tokenizer(folder, 2**31), CLIPTokenizer.from_pretrained(folder)


def sentences():
    """Words, signs, scripts and marks in every company."""
    rng = random.Random(0)
    odd = ODD.split(" ") + ["\u200b", "\u00a0", "\t", "\n", "\u3000", "\x00", START, END, START.upper()]
    for _ in range(300):
        parts = [rng.choice(WORDS) if rng.random() < 0.5 else rng.choice(odd) for _ in range(rng.randint(1, 9))]
        yield rng.choice(["", " "]).join(p.upper() if rng.random() < 0.1 else p for p in parts)
    for _ in range(100):
        yield "".join(chr(rng.choice([rng.randrange(32, 0x250), rng.randrange(0x250, 0xD800)])) for _ in range(12))


def test_tokens_and_places_are_transformers(both):
    ours, theirs = both
    for sentence in ("", " ", *sentences()):
        read = theirs(sentence, add_special_tokens=False, return_offsets_mapping=True)
        assert ours.read(sentence) == (read["input_ids"], [a for a, _ in read["offset_mapping"]]), repr(sentence)


def test_marks_and_padding_are_transformers(both):
    ours, theirs = both
    assert len(ours) == len(theirs) and (ours.start, ours.end) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.padding == (theirs.pad_token_id if theirs.pad_token_id is not None else ours.end)
    if theirs.pad_token_id is not None:
        some = ["a red car", "a cat", "a jeep " * 60]
        assert ours.rows(some, 77) == theirs(some, padding=True, truncation=True, max_length=77)["input_ids"]


def test_what_is_written_is_the_same_again(both, tmp_path):
    ours, _ = both
    write_again(ours, tmp_path)
    again, theirs = load_tokenizer(tmp_path, 2**31), CLIPTokenizer.from_pretrained(tmp_path)
    assert (len(again), again.padding, again.added()) == (len(ours), ours.padding, ours.added())
    for sentence in sentences():
        read = ours.read(sentence)
        assert again.read(sentence) == read and theirs(sentence, add_special_tokens=False)["input_ids"] == read[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("added_tokens.json", {"<cat>": 5}, "'<cat>' is said to have number 5"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "cannot be read"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "word"}}, "cannot be read|has 'word'|is said"),
        ("tokenizer_config.json", {"bos_token": {"lstrip": 1}}, "cannot be read"),
        ("tokenizer_config.json", {"bos_token": ["x"]}, "cannot be read"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "cannot be read"),
        ("tokenizer.json", {"model": []}, "cannot be read"),
        ("tokenizer.json", {"model": {"vocab": {"a": "b"}, "merges": []}}, "cannot be read|for a prompt's start"),
    ],
)
def test_damaged_configs_are_one_line(tmp_path, name, content, said):
    write_tokenizer(tmp_path)
    as_of_openai(tmp_path)
    if "bos_token" in content:
        edit(tmp_path / "special_tokens_map.json", lambda c: c.pop("bos_token"))
    edit(tmp_path / name, lambda c: c.update(content))
    with pytest.raises(FzError, match=f"^tokenizer: .*({said})"):
        load_tokenizer(tmp_path, 2**31)


def test_no_run_imports_transformers():
    """It takes a second."""
    code = "import sys, fz.run, fz.editor, fz.stages, fz.checkpoint, fz.results.report, fz.tuning.run, fz.preflight"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'transformers' not in sys.modules"], check=True)
