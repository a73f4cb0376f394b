"""Numbers and files that say nothing that can be: of a tuning, of a tokenizer, of an index of shards."""

import json

import pytest
from tiny_model import write_tokenizer
from transformers import CLIPTokenizer

from fz import tune
from fz.errors import FzError
from fz.tuning.settings import parse
from fz.weights.read import read_weights
from fz.weights.tokenizer import load_tokenizer

HUGE = str(10**17)


@pytest.mark.parametrize(
    "flags",
    [["--rank", HUGE], ["--rank", "0"], ["--threads", HUGE], ["--steps", HUGE], ["--accumulate", HUGE],
     ["--accumulate", "0"], ["--snr-power", "-1"], ["--snr-power", "nan"], ["--snr-power", "2"],
     ["--sample-steps", "5000"], ["--save-every", HUGE], ["--guidance", "nan"],
     ["--guidance", "inf"], ["--class-weight", "-1"], ["--class-weight", "nan"], ["--rate", "nan"],
     ["--rate", "1e308"]],
    ids=" ".join,
)  # fmt: skip
def test_a_tuning_s_numbers(flags, capsys, tmp_path):
    assert tune.main([*flags, "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{flags[0][2:].replace('-', '_')}: got" in err.replace("--", "").replace("-", "_")


@pytest.mark.parametrize(
    "name", ["gradient_accumulation_steps", "checkpointing_steps", "model_config.lora", "train_steps"]
)
def test_a_config_s_zeros(name, capsys, tmp_path):
    assert tune.main(["--set", f"{name}=0", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert ": got 0, expected a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mixed_precision", "[fp16]", "one of fp16, bf16, no"),
        ("mixed_precision", "fp61", "one of fp16, bf16, no"),
        ("train_steps", ".inf", "a whole number"),
        ("learning_rate", "true", "a number"),
        ("gradient_checkpointing", "3", "true or false"),
        ("dataset_config.class_data_prompt", "[a, b]", "text"),
    ],
)
def test_a_config_s_values_of_other_kinds(name, value, expected, capsys, tmp_path):
    assert tune.main(["--set", f"{name}={value}", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert (err := capsys.readouterr().err).count("\n") == 1 and f"expected {expected}" in err


def test_a_config_says_no_as_yaml_has_it():
    settings, _ = parse(["--set", "mixed_precision=no", "--prompt", "a car", "--out", "tuned"])
    assert settings.dtype == "float32"


def test_a_config_s_prompts_are_sampled_in_its_order(tmp_path):
    prompts = [f"a car {word}" for word in "a b c d e f g h i j k l".split()]
    config = tmp_path / "many.yaml"
    config.write_text(json.dumps({
        "dataset_config": {"path": "clip", "prompt": "a jeep"},
        "editing_config": {"editing_prompts": prompts, "p2p_config": {str(i): {} for i in range(len(prompts))}},
    }))  # fmt: skip
    settings, _ = parse(["--config", str(config)])
    assert settings.sample_prompts == tuple(prompts)


def without_ends(content):
    content["vocab.json"] = {k: v for k, v in content["vocab.json"].items() if not k.startswith("<|")}


def without_end(content):
    del content["vocab.json"]["<|endoftext|>"]


def another_end(content):
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content[name]["eos_token"] = "</s>"


def a_word_for_end(content):
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content[name]["eos_token"] = "cat</w>"


def no_start(content):
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content[name]["bos_token"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [(without_ends, "start"), (without_end, "end"), (another_end, "end"), (a_word_for_end, "end"), (no_start, None)],
)
def test_a_tokenizer_needs_its_ends(change, said, tmp_path):
    write_tokenizer(tmp_path)
    assert len(load_tokenizer(tmp_path, 2**31)) > 500
    names = ("vocab.json", "special_tokens_map.json", "tokenizer_config.json")
    content = {name: json.loads((tmp_path / name).read_text()) for name in names}
    change(content)
    for name in names:
        (tmp_path / name).write_text(json.dumps(content[name]))
    with pytest.raises(FzError, match=f"for a prompt's {said}, expected" if said else "^tokenizer: "):
        load_tokenizer(tmp_path, 2**31)


def test_a_whole_tokenizer_of_one_file_has_its_ends(tmp_path):
    write_tokenizer(tmp_path / "parts")
    one = tmp_path / "one"
    CLIPTokenizer.from_pretrained(tmp_path / "parts").save_pretrained(one)
    for name in ("vocab.json", "merges.txt"):
        (one / name).unlink(missing_ok=True)
    assert (one / "tokenizer.json").is_file()
    assert load_tokenizer(one, 2**31).read("a cat") == load_tokenizer(tmp_path / "parts", 2**31).read("a cat")


@pytest.mark.parametrize("names", [("a.json",), ("b.json", "a.json")], ids=["itself", "each other"])
def test_an_index_that_leads_to_itself(names, tmp_path):
    for name, shard in zip(("a.json", "b.json"), names, strict=False):
        (tmp_path / name).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(FzError, match="an index, expected weights"):
        read_weights(tmp_path / "a.json")
