"""Models that tests make for themselves where the reference data is not there: a tokenizer of CLIP's kind whose words
are chosen, and a Stable Diffusion of the reference's shape with random weights, untuned and tuned.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image
from random_weights import randomize
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fz import mini
from fz.mini.words import write_files
from fz.prompts.text import TextEncoder
from fz.weights.load import load_tokenizer

# one token each; other words ('labradoodle', 'swarovski') are several, other scripts are bytes
WORDS = """a an the and of on in is with to next one two word this that his her
red blue green grey gray navy silver white black yellow pink brown big small very nice round wooden wet best quality
car jeep cat dog man woman robot horse bike ball apple pear egg table bench girl boy wolf fox duck swan beak hat helmet
road street grass mat sand snow beach wall wave ocean river yard rail umbrella porsche
riding driving sitting sits moving walking passes runs painting watercolor photo style don t stop rock n roll jazz blues
labra doodle swarov ski""".split()


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte pair encoding, learned from WORDS."""
    folder.mkdir(parents=True, exist_ok=True)
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(WORDS, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    tokenizer = write_files(folder, [tuple(pair) for pair in merges])
    assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)
    return tokenizer


@functools.cache
def text_encoder() -> TextEncoder:
    """Words and tokens alone, no embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return TextEncoder(load_tokenizer(Path(folder), 2**31), None)
