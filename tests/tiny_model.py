"""Models that tests make for themselves where the reference data is not there: a tokenizer of CLIP's kind whose words
are chosen, and a Stable Diffusion of the reference's shape with random weights, untuned and tuned.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from random_weights import randomize
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fz import mini
from fz.mini.words import write_files
from fz.model.unet import Temporal, UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.prompts.tokenizer import END, START, STOP, ClipTokenizer
from fz.weights.tokenizer import load_tokenizer

# one token each; other words ('labradoodle', 'swarovski') are several, other scripts are bytes
WORDS = """a an the and of on in is with to next one two word this that his her
red blue green grey gray navy silver white black yellow pink brown big small very nice round wooden wet best quality
car jeep cat dog man woman robot horse bike ball apple pear egg table bench girl boy wolf fox duck swan beak hat helmet
road street grass mat sand snow beach wall wave ocean river yard rail umbrella porsche
riding driving sitting sits moving walking passes runs painting watercolor photo style don t stop rock n roll jazz blues
labra doodle swarov ski""".split()


@functools.cache
def learned_merges() -> list[tuple[str, str]]:
    """Of WORDS; ties fall as they like."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(WORDS, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def write_tokenizer(folder: Path) -> ClipTokenizer:
    """CLIP's byte pair encoding, learned from WORDS."""
    tokenizer = write_files(folder, learned_merges())
    assert all(len(tokenizer.read(word)[0]) == 1 for word in WORDS)
    return tokenizer


def spoken(tokenizer: ClipTokenizer, numbers: Sequence[int]) -> str:
    """The sentence of token numbers, without start, end and padding."""
    tokens = [tokenizer.token(n) for n in numbers]
    whole = decoders.ByteLevel().decode([token for token in tokens if token not in (START, END)])
    return whole.replace(STOP, " ").strip()


@functools.cache
def text_encoder() -> TextEncoder:
    """Words and tokens alone, no embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return TextEncoder(load_tokenizer(Path(folder), 2**31), None)


@functools.cache
def transformers_tokenizer() -> CLIPTokenizer:
    """Of the same files."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


# ---- a checkpoint of the reference's shape -------------------------------------------------------------------

LEVELS = (
    ("CrossAttnDown", "CrossAttnDown", "CrossAttnDown", "Down"),
    ("Up", "CrossAttnUp", "CrossAttnUp", "CrossAttnUp"),
)
UNET = {
    "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [32, 64, 96, 96],
    "center_input_sample": False, "cross_attention_dim": 32, "downsample_padding": 1, "flip_sin_to_cos": True,
    "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
    "norm_num_groups": 8, "out_channels": 4, "sample_size": 64,
}  # fmt: skip
VAE_CONFIG = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.11.1", "act_fn": "silu", "in_channels": 3,
    "block_out_channels": [16, 32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 8, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 49408,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 32,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", "beta_end": 0.012, "beta_start": 0.00085,
    "beta_schedule": "scaled_linear", "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
# diffusers' names of the VAE's attention in files of that time
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_reference(folder: Path) -> Path:
    """tiny_sd, tiny_tuned and clips/car128 in a folder, as in the reference data: the shapes and the layout of its
    files, but random weights and WORDS.
    """
    write_model(folder / "tiny_sd", "UNet2DConditionModel", "Block2D")
    write_model(folder / "tiny_tuned", "UNetPseudo3DConditionModel", "BlockPseudo3D", tuned=True)
    clip = folder / "clips" / "car128"
    clip.mkdir(parents=True)
    for i, file in enumerate(sorted((mini.FOLDER / "example").glob("*.png"))):
        Image.open(file).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC).save(clip / f"{i:05d}.png")
    return folder


def write_model(folder: Path, kind: str, block: str, tuned: bool = False) -> None:
    down, up = ([level + block for level in levels] for levels in LEVELS)
    config = UNET | {"_class_name": kind, "down_block_types": down, "up_block_types": up}
    temporal = Temporal(True, "low_rank", ((4, 2), (32, 16), (64, 32), (96, 48))) if tuned else None
    if tuned:
        config |= {"mid_block_type": "UNetMidBlockPseudo3DCrossAttn", "only_cross_attention": False}
    shape = UNetConfig.from_json(UNET | {"down_block_types": [level + "Block2D" for level in LEVELS[0]],
                                         "up_block_types": [level + "Block2D" for level in LEVELS[1]]})  # fmt: skip
    unet = randomize(UNet(dataclasses.replace(shape, temporal=temporal)), 1).state_dict()
    vae = randomize(VAE(VAEConfig.from_json(VAE_CONFIG)), 2).state_dict()
    text = randomize(CLIPTextModel(CLIPTextConfig(**TEXT)), 3).state_dict()
    text = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in text.items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for old, new in OLD_NAMES.items():
        vae = {k.replace(f".{old}.", f".{new}.") if "attentions" in k else k: t for k, t in vae.items()}
    write_part(folder / "unet", config, unet, "diffusion_pytorch_model" + (".bin" if tuned else ".safetensors"))
    write_part(folder / "vae", VAE_CONFIG, vae, "diffusion_pytorch_model.bin")
    write_part(folder / "text_encoder", TEXT | {"architectures": ["CLIPTextModel"]}, text, "pytorch_model.bin")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    pipeline = "P2pDDIMSpatioTemporalPipeline" if tuned else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    write_tokenizer(folder / "tokenizer")


def write_part(folder: Path, config: dict, state: dict[str, torch.Tensor], name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name, {"format": "pt"})
