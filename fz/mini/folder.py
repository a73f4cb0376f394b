"""What does training leave, as a checkpoint folder of diffusers' layout, fp16?

The averaged weights are taken that training last wrote, so one that still runs can be exported too. The CLIP goes
along as clip/, in transformers' layout.
"""

import csv
import math
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fz.clips.media import atomic, write_json, write_pngs
from fz.errors import FzError
from fz.mini.shape import SCHEDULER, TEXT, UNET, VAE_JSON
from fz.mini.state import read_averages, undamaged
from fz.mini.words import new_tokenizer
from fz.mini.world import Story, Thing, draw
from fz.tensors import write_safetensors
from fz.weights.layouts import under

# of the default run: the sentence of it is in fz.mini.example
EXAMPLE = Story((Thing("car", "red", (0.32, 0.6), (0.6, 0.62), 0.4, 0.01, 0.08),), "sand", seed=11, drift=0.02)
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.20.0", "feature_extractor": [None, None],
    "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


def export(state: Path, out: Path) -> str:
    """Write the checkpoint of a state's averages; returns what it is of. Raises FzError if the state has none yet."""
    averages, vae_file = read_averages(state), state / "vae-final.pt"
    if not averages or not vae_file.exists():
        raise FzError(f"state: {state} has no averages of a training yet. Run python -m fz.mini.train --state {state}.")
    with undamaged(vae_file):
        vae = dict(torch.load(vae_file, weights_only=True))
    tokenizer = new_tokenizer(out / "tokenizer")
    text = {
        "text_model." + k.removeprefix("text_model."): t
        for k, t in under(averages, "text.").items()
        if "position_ids" not in k
    }
    text_config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": len(tokenizer),
        **TEXT,
        "layer_norm_eps": 1e-5,
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.padding,
    }
    write_part(out / "unet", UNET, under(averages, "unet."), "diffusion_pytorch_model")
    write_part(out / "vae", VAE_JSON, vae, "diffusion_pytorch_model")
    write_part(out / "text_encoder", text_config, text, "model")
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(out / "model_index.json", INDEX)
    write_pngs(out / "example", draw(EXAMPLE).frames)
    if not (state / "log.csv").exists():
        # averages travel alone
        return "averages without a log"
    shutil.copyfile(state / "log.csv", out / "log.csv")
    draw_log(out / "log.csv", out / "loss.png")
    with open(state / "log.csv", newline="") as file:
        seen = [row["pictures"] for row in csv.DictReader(file)]
    return f"{seen[-1] if seen else 'no'} pictures"


def export_clip(state: Path, out: Path) -> None:
    """Write clip/ with its tokenizer. Raises FzError if it has not been trained."""
    from fz.mini.clip_training import configuration

    if not (state / "clip.pt").exists():
        raise FzError(f"state: {state} has no clip.pt. Run python -m fz.mini.train_clip --state {state}.")
    with undamaged(state / "clip.pt"):
        averaged = torch.load(state / "clip.pt", weights_only=True)["shadow"]
    config = configuration(new_tokenizer(out / "clip"))
    write_part(out / "clip", config, under(averaged, "clip."), "model")
    if (state / "log-clip.csv").exists():
        shutil.copyfile(state / "log-clip.csv", out / "clip" / "log.csv")


def draw_log(log: Path, picture: Path, size: tuple[int, int] = (900, 240)) -> None:
    """The loss by step at each size of picture, on a log scale of its own, side by side."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    w, h = size
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    for k, side in enumerate(sizes):
        points = [(int(row["step"]), math.log(float(row["loss"]))) for row in rows if row["size"] == side]
        last, low, high = points[-1][0], min(y for _, y in points), max(y for _, y in points)
        left, right, top, bottom = w * k // len(sizes) + 12, w * (k + 1) // len(sizes) - 12, 30, h - 22
        place = [
            (left + (right - left) * x / last, bottom - (bottom - top) * (y - low) / max(high - low, 1e-6))
            for x, y in points
        ]
        canvas.rectangle((left, top, right, bottom), outline=(190, 190, 190))
        canvas.text(
            (left, 8), f"{side} px: loss {math.exp(points[0][1]):.3g} to {math.exp(points[-1][1]):.3g}", fill=(0, 0, 0)
        )
        canvas.text((left, bottom + 4), f"{last} steps", fill=(0, 0, 0))
        canvas.line(place, fill=(30, 80, 180), width=2)
    with atomic(picture) as part:
        image.save(part, format="PNG")


def write_part(folder: Path, config: dict, tensors: dict[str, Tensor], name: str) -> None:
    write_json(folder / "config.json", config)
    write_safetensors(folder / f"{name}.safetensors", {key: t.half() for key, t in tensors.items()}, {"format": "pt"})
