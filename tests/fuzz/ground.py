"""What inputs are made of: a tiny random Stable Diffusion, a clip of two seconds, and what each command makes of them.

Made once, in a folder of its own; an input takes copies of what it damages.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .children import in_child, run_command

SOURCE, TARGET = "a red car on the sand", "a blue car on the sand"
SIZE, FRAMES, STEPS = 64, 2, 2
UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "in_channels": 4,
    "out_channels": 4,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "in_channels": 3,
    "out_channels": 3,
    "scaling_factor": 0.18215,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = f"""
pretrained_model_path: model
dataset_config:
    path: clip
    prompt: "{SOURCE}"
    n_sample_frame: {FRAMES}
    sampling_rate: 1
    offset: {{left: 0, right: 0, top: 0, bottom: 0}}
editing_config:
    use_invertion_latents: True
    use_inversion_attention: True
    guidance_scale: 7.5
    num_inference_steps: {STEPS}
    editing_prompts: [
        # a comment
        {TARGET},
        {TARGET.replace("blue", "green")},
    ]
    p2p_config:
        0:
            is_replace_controller: True
            cross_replace_steps:
                default_: 0.8
            self_replace_steps: 0.6
            eq_params:
                words: ["blue"]
                values: [2]
            blend_words: [['car',], ["car",]]
            blend_self_attention: True
            blend_th: [0.3, 0.3]
        1:
            is_replace_controller: False
            cross_replace_steps: {{default_: 0.7}}
            self_replace_steps: 0.7
train_steps: 2
learning_rate: 1e-5
seed: 0
gradient_accumulation_steps: 1
mixed_precision: "no"
checkpointing_steps: 1
"""


@dataclass(frozen=True)
class Ground:
    """Paths: model, clip (frames), movie, mask, config and jobs (YAML), results (with a cache), tuned, table,
    evaluated, judge."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / {
            "movie": "clip.mp4",
            "mask": "mask.png",
            "config": "config.yaml",
            "jobs": "jobs.yaml",
        }.get(name, name)

    def flags(self, **changes: str | bool | None) -> list[tuple[str, str | None]]:
        """Flags of a run that is fine, as pairs; a change of None leaves one out, True is a switch."""
        flags: dict[str, str | bool | None] = {
            "checkpoint": str(self.model), "video": str(self.clip), "size": str(SIZE), "frames": str(FRAMES),
            "steps": str(STEPS), "device": "cpu", "threads": "1", "cache": "cache", "source": SOURCE, "target": TARGET,
            "out": "o",
        }  # fmt: skip
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return [(f"--{k}", None if v is True else str(v)) for k, v in flags.items() if v is not None]

    def tuning(self, **changes: str | bool | None) -> list[tuple[str, str | None]]:
        """Flags of a tuning that is fine."""
        more = {"source": None, "target": None, "cache": None, "prompt": SOURCE, "save_every": "1"}
        return self.flags(**{**more, **changes})

    def table1(self, **changes: str | bool | None) -> list[tuple[str, str | None]]:
        """Flags of a table that is fine."""
        more = {
            **dict.fromkeys(("source", "target", "cache", "video", "device")), "clips": "1", "frames": "2",
            "methods": "fatezero", "clip": "none",
        }  # fmt: skip
        return self.flags(**{**more, **changes})

    def evaluation(self, **changes: str | bool | None) -> list[tuple[str, str | None]]:
        """Flags of an evaluation of the miniature that is fine: few clips, of the model's pictures."""
        parts = dict.fromkeys(("pictures", "two", "clips", "removals", "one_of_two"), "1")
        more = {**dict.fromkeys(("source", "target", "cache", "video", "device", "threads")), "ablations": "0", **parts}
        return self.flags(**{**more, "picture_steps": "1", **changes})


def joined(flags: list[tuple[str, str | None]]) -> list[str]:
    return [part for name, value in flags for part in ((name,) if value is None else (name, value))]


def prepare(folder: Path) -> Ground:
    """Make all of it. Raises RuntimeError, with what a child said, where that fails."""
    ground = Ground(folder)
    folder.mkdir(parents=True)
    work = folder.parent / "made"
    work.mkdir()
    child(lambda: make_model(ground.model), work)
    child(lambda: make_clips(ground), work)
    ground.config.write_text(CONFIG)
    jobs = [
        {"name": "red", "clip": str(ground.clip), "source": SOURCE, "target": TARGET, "threshold": 0.5},
        {"name": "two", "clip": str(ground.movie), "source": SOURCE, "targets": [TARGET, f"oil painting of {SOURCE}"]},
    ]
    ground.jobs.write_text(json.dumps({"jobs": jobs}))
    from fz import mini

    shutil.copytree(mini.FOLDER / "clip", ground.judge)
    environment = {"FZ_CACHE": str(work / "default-cache"), "HOME": str(work)}
    more = {"save_latents": True, "threshold": "0.5"}
    for name, flags in (
        ("fz.run", ground.flags(**more, out=str(ground.results / "o"), cache=str(ground.results / "cache"))),
        ("fz.tune", ground.tuning(out=str(ground.tuned / "o"))),
        ("bench.table1", ground.table1(out=str(ground.table / "o"))),
        ("fz.mini.evaluate", ground.evaluation(out=str(ground.evaluated / "o"))),
    ):
        child(lambda n=name, f=flags: run_command(n, joined(f), work, environment), work)
    return ground


def child(work: Callable[[], object], folder: Path) -> None:
    ended = in_child(work, folder, seconds=120)
    if ended.code != 0:
        raise RuntimeError(f"preparing: code {ended.code}\n{ended.out}{ended.err}")


def make_model(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    from fz import mini
    from fz.model.unet import UNet, UNetConfig
    from fz.model.vae import VAE as VAEModel
    from fz.model.vae import VAEConfig

    from ..random_weights import randomize

    text = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
        **json.loads((mini.FOLDER / "text_encoder/config.json").read_text()), **TEXT,
    }  # fmt: skip
    encoder = CLIPTextModel(CLIPTextConfig(**{k: v for k, v in text.items() if k != "architectures"}))
    state = {"text_model." + k.removeprefix("text_model."): t for k, t in encoder.state_dict().items()}
    parts = {
        "unet": (UNET, randomize(UNet(UNetConfig.from_json(UNET))).state_dict(), "diffusion_pytorch_model"),
        "vae": (VAE, randomize(VAEModel(VAEConfig.from_json(VAE))).state_dict(), "diffusion_pytorch_model"),
        "text_encoder": (text, {k: t for k, t in state.items() if "position_ids" not in k}, "model"),
    }
    from safetensors.torch import save_file

    for name, (config, tensors, file) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config, indent=1))
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / name / f"{file}.safetensors")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(mini.FOLDER / name, folder / name)
    shutil.copyfile(mini.FOLDER / "model_index.json", folder / "model_index.json")


def make_clips(ground: Ground) -> None:
    import numpy as np

    from fz.clips.media import write_mp4, write_png, write_pngs

    y, x = np.mgrid[:SIZE, :SIZE]
    frames = np.stack([np.stack([x * 4, y * 4, 0 * x + 32 * i], -1) for i in range(8)]).astype(np.uint8)
    write_pngs(ground.clip, frames[:4])
    write_mp4(ground.movie, frames, 8.0)
    write_png(ground.mask, np.where(((x - 32) ** 2 + (y - 32) ** 2 < 300)[..., None], [255] * 3, 0).astype(np.uint8))
