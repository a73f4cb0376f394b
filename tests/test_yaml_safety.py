"""Configs of strangers: what is said twice, multiplies, nests, leads in circles or is of an odd kind is answered in one
line, at once.
"""

import os
import time

import pytest

from fz.errors import FzError
from fz.settings import released, safe_yaml, tree
from fz.settings.config import build
from fz.settings.sweep import read_sweeps

BODY = "dataset_config: {path: clip, prompt: a red car}\nediting_config: {editing_prompts: [a blue car]}\n"


def refused(read, *arguments):
    begun = time.process_time()
    with pytest.raises(FzError) as caught:
        read(*arguments)
    assert time.process_time() - begun < 1.5
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700
    return said


def config(text):
    content = safe_yaml.parse(text)
    translation = released.translate(tree.with_text_keys(content))
    return build(released.DEFAULTS, translation.overlay)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1 or ''}, *a{i - 1 or ''}]}}\n" for i in range(1, 40))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1200))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "line 2: 'seed' is there twice, first at line 1"),
        ("a: {b: {0: x, '0': y}}", "'0' is there twice"),
        ("a: [{b: 1, b: 1}]", "'b' is there twice"),
        (LAUGHS, "aliases make"),
        (MERGES.replace("a0", "a"), "aliases make"),
        (CHAIN, "levels deep"),
        ("a: &a [*a]", "within itself"),
        ("a: &a {b: *a}", "within itself"),
        ("a: &a {b: [c, {d: *a}]}", "within itself"),
        ("a: &a\n  <<: *a\n", "within itself"),
        ("[" * 5000 + "]" * 5000, "nested deeper than"),
        ("a: " + "{b: " * 5000 + "}" * 5000, "nested deeper than"),
        ("".join(" " * i + "a:\n" for i in range(300)), "nested deeper than"),
        ("- " * 5000 + "x", "nested deeper than"),
    ],
    ids=["twice", "number and text", "in a list", "laughs", "merges", "chain", "list in itself", "names in themselves",
         "further in itself", "merge of itself", "brackets", "braces", "indents", "dashes"],
)  # fmt: skip
def test_what_multiplies_or_never_ends(text, said):
    assert said in refused(safe_yaml.parse, text)


@pytest.mark.parametrize(
    "text",
    ["a: !!int abc", "a: !!float x", "a: !!bool maybe", "a: !!timestamp x", "a: !!binary ÿ", "a: !!set {x}",
     "a: !!omap [x]", "a: !!python/name:os.system", "a: !other x", "a: !!int " + "9" * 9999, "a: !!map x",
     "a: !!seq {}", "? [a]\n: b", "a: *b", "a: \x00", "<<: 3", "%YAML 3.0\n---\n", "a: [1", "\t", "a: !!null"],
)  # fmt: skip
def test_odd_kinds_are_no_yaml(text, tmp_path):
    if text == "a: !!null":
        assert safe_yaml.parse(text) == {"a": None}
        return
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert "is no YAML" in refused(tree.read, path)


def test_dates_and_marks_are_text():
    assert safe_yaml.parse("a: 2020-99-99\nb: 2020-01-01\nc: ²") == {"a": "2020-99-99", "b": "2020-01-01", "c": "²"}
    said = refused(config, BODY + "seed: ²\n")
    assert said == "seed: got '²', expected a number."
    assert "expected a number" in refused(config, BODY + f"seed: {'9' * 400}\n")
    assert "'²' as the number of an edit" in refused(
        config, BODY.replace("editing_prompts", "p2p_config: {²: {self_replace_steps: 1}}, editing_prompts")
    )
    content = {"a": ["x"]}
    assert "'²' as a place in a list" in refused(tree.assign, content, "a.²=3")
    assert "names nothing" in refused(tree.Config({"a": ["x"], "b": "${a.²}"}).get, "b")
    assert tree.Config(content).get("a.²") is None
    for number in ("²", "99999999999", "-1", "x"):
        assert "unknown setting" in refused(
            build, {"clip.path": "c", "source": "a car", f"edits.{number}.target": "a car"}
        )


def test_merges_and_aliases_that_are_meant_are_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: *a\n"
    assert safe_yaml.parse(text) == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 2, "y": [1, 2]}, "c": {"x": 1, "y": [1, 2]}}
    assert safe_yaml.parse("") is None and safe_yaml.parse("a: true\nb: 1e3\nc: 0.5\nd: ~") == {
        "a": True, "b": "1e3", "c": 0.5, "d": None,
    }  # fmt: skip


DOUBLES = {f"a{i}": f"${{a{i + 1}}}${{a{i + 1}}}" for i in range(25)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DOUBLES | {"a25": "x"}, "multiply"),
        (DOUBLES | {"a25": ""}, "multiply"),
        ({f"a{i}": {"x": f"${{a{i + 1}}}", "y": f"${{a{i + 1}}}"} for i in range(25)} | {"a25": 1}, "multiply"),
        ({f"a{i}": f"${{a{i + 1}}}" for i in range(3000)} | {"a3000": 1}, "leads on and on"),
        ({"a0": "${a0}"}, "back to itself"),
        ({"a0": "${.a1}", "a1": "x${a0}"}, "back to itself"),
        ({"a0": {"b": "${..a0}"}}, "back to itself"),
        ({"a0": "$${b}", "b": "{a0}"}, "back to itself"),
        ({"a0": "${"}, "is not closed"),
        ({"a0": "${" * 4000}, "is not closed"),
        ({"a0": "${a0" + "x" * 9_000}, "is not closed"),
        ({"a0": "${" * 100_000 + "x"}, "got 200001 characters"),
        ({"a0": "${b}" * 5000, "b": "x"}, "got 20000 characters"),
        ({"a0": "${b}" * 100, "b": "x" * 9999}, "characters, expected at most"),
        ({"a0": "x ${b}", "b": {"c": 1}}, "is a section or a list"),
        ({"a0": "${" + "." * 5000 + "}"}, "names nothing"),
    ],
)
def test_interpolations_that_multiply_or_never_end(content, said):
    assert said in refused(tree.Config(content).get, "a0")


def test_interpolations_that_are_meant_are_resolved():
    content = {"a": "${b.c} and ${b.d.0}", "b": {"c": "${.d}", "d": ["x", 2]}}
    assert tree.Config(content).get("b.c") == ["x", 2]
    assert tree.Config(content | {"a": "${b.d.0} and ${b.d.1}"}).get("a") == "x and 2"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "absent", "name"])
def test_what_is_no_config_file_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "c.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_text("a: x\n# " + "x" * 10**7)
    path = {"device": "/dev/zero", "name": "a\0b"}.get(kind, path)
    said = refused(tree.read, path)
    assert {
        "pipe": "no regular file",
        "device": "no regular file",
        "folder": "a folder",
        "large": "more than",
        "name": "null bytes",
    }.get(kind, "cannot be read") in said


def test_a_name_of_many_parts_is_no_assignment():
    assert "expected section.key=value" in refused(tree.assign, {}, ".".join(["a"] * 5000) + "=1")
    assert "within itself" in refused(tree.assign, {}, "a=&a [*a]")
    assert "is there twice" in refused(tree.assign, {}, "a={b: 1, b: 2}")
    content = {}
    tree.assign(content, "prompt=a car: red, on 2020-99-99 !!int")
    assert content == {"prompt": "a car: red, on 2020-99-99 !!int"}


@pytest.mark.parametrize("count", [7, 64, 2000])
def test_many_axes_are_many_combinations(count):
    axes = [f"reweight.w{i}=1,2" for i in range(count)]
    said = refused(read_sweeps, axes)
    assert "combinations, expected at most 100" in said
    assert len(read_sweeps(axes[:6])) == 64


@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "train_batch_size", "batch_size"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "true"])
def test_numbers_of_tuning_that_cannot_be_are_refused_though_unused(name, value):
    assert f"{name}: got" in refused(config, BODY + f"{name}: {value}\n")
