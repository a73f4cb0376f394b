"""The miniature's tokenizer: CLIP's kind of byte pair encoding, with a vocabulary for the world's captions.

Each word of the captions is one token but for a few that are two, as long words are for CLIP. Anything else is spelled
in bytes.
"""

import json
import random
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from fz.mini.world import vocabulary

SPLIT = {"watercolor": ("water", "color"), "pencil": ("pen", "cil"), "purple": ("pur", "ple"), "orange": ("or", "ange")}
START, END, STOP = "<|startoftext|>", "<|endoftext|>", "</w>"


def merges_of(piece: list[str]) -> list[tuple[str, str]]:
    """Merge a piece from the left: c+a, ca+r."""
    merges, left = [], piece[0]
    for right in piece[1:]:
        merges.append((left, right))
        left += right
    return merges


def spelled(word: str) -> list[list[str]]:
    """The word's tokens as lists of characters, the last with the end-of-word mark."""
    pieces = [list(piece) for piece in SPLIT.get(word, (word,))]
    pieces[-1][-1] += STOP
    return pieces


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the configs, and read them back. Raises RuntimeError if no order of merges
    spells every word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    for attempt in range(500):
        random.Random(attempt).shuffle(words)
        merges: list[tuple[str, str]] = list(
            dict.fromkeys(m for word in words for piece in spelled(word) for m in merges_of(piece))
        )
        tokenizer = write_files(folder, merges)
        if all(tokenizer.tokenize(word) == ["".join(piece) for piece in spelled(word)] for word in words):
            return tokenizer
    raise RuntimeError("no order of merges spells every word")


def write_files(folder: Path, merges: list[tuple[str, str]]) -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())  # one character for each byte
    tokens = [*letters, *(letter + STOP for letter in letters), *("".join(m) for m in merges), START, END]
    vocabulary_file = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary_file, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n", encoding="utf-8"
    )
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
