"""Trains the miniature: pictures, VAE, latents, then text encoder and UNet together, first at 16x16 latents, then at 32x32.

A last stage teaches cross-attention where things are, which so small a model does not find by itself: masks are made of it.

`python -m fz.mini.train --state DIR` does all of it and goes on where it was stopped; each stage ends after its minutes of training.
Then `python -m fz.mini.export` puts the result into a checkpoint folder. State and log are in DIR.
"""

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fz.attention import MAP_STRIDE
from fz.ddim import Schedule
from fz.frames import FrameIndex, frame_table
from fz.mini.data import draw_many, places, to_unit
from fz.mini.warm import warm_start
from fz.mini.words import write_tokenizer
from fz.mini.world import VERB, sample_story
from fz.model.fast_cpu import keep_freed_memory
from fz.model.layers import Operands, Site, TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import SCALE, VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.shell import Parser, answered, leave

UNET = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [40, 80, 120, 160], "layers_per_block": 2, "attention_head_dim": 4,
    "cross_attention_dim": 128, "norm_num_groups": 8, "norm_eps": 1e-5, "in_channels": 4, "out_channels": 4, "sample_size": 32,
    "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE_JSON = {
    "_class_name": "AutoencoderKL", "block_out_channels": [32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4,
    "in_channels": 3, "out_channels": 3, "act_fn": "silu", "sample_size": 128, "scaling_factor": SCALE,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip
TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 64,
        "max_position_embeddings": 77, "hidden_act": "quick_gelu"}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
STORIES = 12_000
EMPTY = 0.1  # share of prompts left empty, for guidance
SHORT = 0.2  # share of prompts without the verb: 'a blue star on the grass'
PLACED = 6_000  # stories whose things' places are learned
PLACING = 0.01  # weight of that loss
CLIPS = 0.25  # share of batches whose pictures are clips of two frames, as editing has them
MOST_SNR = 5.0  # steps with less noise weigh less (min-SNR, arXiv 2303.09556): they hold most of the loss and little of the shapes
SAVE_EVERY = 120  # seconds


class Training:
    """One stage: modules, optimiser, EMA, seconds trained; all of it in one file, written whole. Goes on where the file ends."""

    def __init__(
        self, state: Path, name: str, modules: dict[str, nn.Module], rate: float, minutes: float, average: float = 0.999
    ):
        self.path, self.name, self.modules = state / f"{name}.pt", name, nn.ModuleDict(modules)
        self.rate, self.minutes, self.average = rate, minutes, average
        self.seconds, self.steps = 0.0, 0
        self.optimiser = torch.optim.AdamW(self.modules.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.shadow = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.log = state / "log.csv"
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.modules.load_state_dict(saved["modules"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.shadow, self.seconds, self.steps = saved["shadow"], saved["seconds"], saved["steps"]
            torch.set_rng_state(saved["random"])

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save({"modules": self.modules.state_dict(), "optimiser": self.optimiser.state_dict(), "shadow": self.shadow,
                    "seconds": self.seconds, "steps": self.steps, "random": torch.get_rng_state()}, part)  # fmt: skip
        os.replace(part, self.path)

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Train until the minutes are over: warm up, then a cosine down to a twentieth of the rate."""
        saved_at = last = time.monotonic()
        recent: list[float] = []
        while self.seconds < 60 * self.minutes:
            done = self.seconds / (60 * self.minutes)
            rate = self.rate * min(1, (self.steps + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            loss = loss_of(self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimiser.step()
            self.steps += 1
            with torch.no_grad():
                decay = min(self.average, (1 + self.steps) / (10 + self.steps))
                for key, value in self.modules.state_dict().items():
                    self.shadow[key].lerp_(value, 1 - decay) if value.is_floating_point() else self.shadow[key].copy_(
                        value
                    )
            recent.append(loss.item())
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if self.steps % 50 == 0:
                self.write_log(sum(recent) / len(recent))
                recent = []
            if now - saved_at > SAVE_EVERY:
                self.save()
                saved_at = now
        self.save()

    def write_log(self, loss: float) -> None:
        new = not self.log.exists()
        with open(self.log, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "seconds", "loss"])
            writer.writerow([self.name, self.steps, round(self.seconds), f"{loss:.5f}"])

    def finished(self) -> dict[str, nn.Module]:
        """The modules with their averaged weights, not to be trained on."""
        self.modules.load_state_dict(self.shadow)
        return {name: module.eval().requires_grad_(False) for name, module in self.modules.items()}


class BuiltAttention:
    """Attention by its maps: with gradients, and as few tokens as here, twice as fast on a CPU as the flash kernel."""

    def __init__(self, frame_index: FrameIndex, keep_maps: bool = False):
        """keep_maps: those that masks are made of go to `maps`, (B, F, N, L), averaged over heads."""
        self.frame_index, self.keep_maps = frame_index, keep_maps
        self.maps: list[Tensor] = []

    def __call__(self, site: Site, x: Operands) -> Tensor:
        q, k, v = (o.transpose(-3, -2) for o in (x.q(), x.k(), x.v()))  # (B, F, Nh, N, D); of a prompt (B, Nh, L, D)
        if site.kind == "self":
            table = frame_table(self.frame_index, site, x)
            k, v = (o[:, table].transpose(2, 3).flatten(3, 4) for o in (k, v))  # (B, F, Nh, R·N, D)
        else:
            k, v = k[:, None], v[:, None]
        s = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        if self.keep_maps and site.kind == "cross" and site.stride == MAP_STRIDE:
            self.maps.append(s.float().mean(2))
        return (s @ v).transpose(-3, -2)


def pictures(state: Path, stories: int) -> tuple[Tensor, list[str]]:
    """The training pictures (n, 2, 3, 128, 128) uint8 and their captions; drawn once. One story in 13 is of an empty scene."""
    path = state / "pictures.pt"
    if not path.exists():
        full, empty = draw_many(0, stories), draw_many(stories, stories // 12, empty=True)
        drawn = {"frames": torch.cat([full.frames, empty.frames]), "captions": full.captions + empty.captions}
        torch.save(drawn, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    saved = torch.load(path, weights_only=True, mmap=True)
    return saved["frames"], saved["captions"]


def crops(frames: Tensor, batch: int, side: int) -> Tensor:
    """A batch of crops at chance, in [-1, 1], half of them mirrored."""
    out = []
    for i in torch.randint(len(frames), (batch,)).tolist():
        y, x = (int(torch.randint((full - side) // 4 + 1, ()) * 4) for full in frames.shape[-2:])
        crop = frames[i, int(torch.randint(2, ())), :, y : y + side, x : x + side]
        out.append(crop.flip(-1) if torch.rand(()) < 0.5 else crop)
    return to_unit(torch.stack(out)).contiguous(memory_format=torch.channels_last)


def train_vae(state: Path, frames: Tensor, minutes: float) -> VAE:
    """The VAE: absolute and squared error of crops, latents with a little noise so that near latents decode alike."""
    vae = VAE(VAEConfig.from_json(VAE_JSON))
    warm_start(vae)
    vae.to(memory_format=torch.channels_last)
    training = Training(state, "vae", {"vae": vae}, rate=2e-3, minutes=minutes)

    def loss(step: int) -> Tensor:
        x = crops(frames, 16, 64)
        z = vae.encode(x)
        out = vae.decode(z + 0.03 * torch.randn_like(z))
        return (
            F.l1_loss(out, x)
            + 2 * F.mse_loss(out, x)
            + 1e-3 * (z.square().mean() - 1).clamp(min=0)
            + 1e-3 * z.mean().square()
        )

    training.run(loss)
    return training.finished()["vae"]


@torch.no_grad()
def unit_latents(vae: VAE, frames: Tensor) -> None:
    """Fold a shift and a factor into the VAE's 1x1 convolutions: each channel of a latent times SCALE then has mean 0, deviation 1."""
    z = torch.cat([vae.encode(to_unit(part[:, 0])) for part in frames[:512].split(32)])
    mean, factor = z.mean((0, 2, 3)), 1 / (SCALE * z.std((0, 2, 3)))
    out, back = vae.quant_conv, vae.post_quant_conv
    out.bias[:4] = (out.bias[:4] - mean) * factor
    out.weight[:4] *= factor[:, None, None, None]
    # decode(z / factor + mean)
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight /= factor[None, :, None, None]


@torch.no_grad()
def latents(state: Path, vae: VAE, frames: Tensor, size: int) -> Tensor:
    """Scaled latents of all training pictures shrunk to `size`, (n, 2, 4, size/4, size/4) float16; computed once."""
    path = state / f"latents-{size}.pt"
    if not path.exists():
        parts = []
        for part in frames.split(16):
            x = to_unit(part.flatten(0, 1))
            x = F.interpolate(x, size=(size, size), mode="area") if size != x.shape[-1] else x
            parts.append(
                (SCALE * vae.encode(x.contiguous(memory_format=torch.channels_last)))
                .half()
                .unflatten(0, part.shape[:2])
            )
        torch.save(torch.cat(parts), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return torch.load(path, weights_only=True)


def new_text_model(vocabulary: int, start: int, end: int) -> CLIPTextModel:
    config = CLIPTextConfig(vocab_size=vocabulary, bos_token_id=start, eos_token_id=end, pad_token_id=end, **TEXT)
    return CLIPTextModel(config)


@dataclass(frozen=True)
class Placement:
    """Where the things of stories are, (n, 2 moments, 2 things, N) shares of the maps' cells, and which tokens name them.

    columns: (n, 2 captions, 2 things, L), 1 for a thing's words.
    """

    cells: Tensor
    columns: Tensor

    def loss(self, maps: list[Tensor], chosen: Tensor, moments: Tensor, which: Tensor, told: Tensor) -> Tensor:
        """Cross-entropy of the words' attention over a picture's cells to the thing's own place; of the prompts that were told.

        maps: (n, F, N, L) each; chosen, which (n,): stories and captions; moments (n, F); told (n,) bool.
        """
        words = self.columns[chosen, which]  # (n, 2, L)
        seen = torch.einsum("bfnl,bkl->bfkn", torch.stack(maps).mean(0), words)
        where = self.cells[chosen[:, None], moments]  # (n, F, 2, N)
        there = told[:, None, None] & (where.sum(-1) > 0) & (words.sum(-1) > 0)[:, None]
        log = (seen / seen.sum(-1, keepdim=True).clamp(min=1e-6)).clamp(min=1e-6).log()
        entropy = -(where / where.sum(-1, keepdim=True).clamp(min=1e-6) * log).sum(-1)
        return entropy[there].sum() / there.sum().clamp(min=1)


def placement(encoder: TextEncoder, captions: list[str], cells: int) -> Placement:
    """Of the stories of seeds 0 …, whose captions these are."""
    columns = torch.zeros(len(captions), 2, 2, 77)
    for seed, caption in enumerate(captions):
        for i, text in enumerate(variants(caption)):
            for word in encoder.tokens(text).words:
                for j, thing in enumerate(sample_story(seed).things):
                    if word.text in (thing.kind, thing.colour):
                        columns[seed, i, j, list(word.positions)] = 1
    shares = torch.stack([torch.from_numpy(places(seed, cells)) for seed in range(len(captions))])
    return Placement(shares.flatten(3), columns)


def variants(caption: str) -> tuple[str, str]:
    """The caption, and it without its verb."""
    return caption, caption.replace(f" {VERB}", "")


def train_unet(
    state: Path,
    name: str,
    z: Tensor,
    captions: list[str],
    minutes: float,
    rate: float,
    batch: int,
    start: Path | None,
    place: bool = False,
) -> None:
    """UNet and text encoder by the weighted epsilon loss, prompts empty for a tenth, a quarter of the batches clips of two frames.

    place: with `Placement.loss`, too; captions are then of the stories of seeds 0 ….
    """
    tokenizer = write_tokenizer(state / "tokenizer")
    text = new_text_model(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    unet = UNet(UNetConfig.from_json(UNET)).to(memory_format=torch.channels_last)
    training = Training(state, name, {"unet": unet, "text": text}, rate=rate, minutes=minutes)
    if start and not training.path.exists():
        training.modules.load_state_dict(torch.load(start, weights_only=True)["shadow"])
        training.shadow = {k: v.detach().clone() for k, v in training.modules.state_dict().items()}
    encoder = TextEncoder(tokenizer, text)
    ids = torch.tensor([[encoder.tokens(c).ids for c in variants(caption)] for caption in captions])
    nothing = torch.tensor(encoder.tokens("").ids)
    alpha_bar = torch.tensor(Schedule.from_config(SCHEDULER, 1000).alpha_bars)
    own, clip_frames = (BuiltAttention(FrameIndex(index), keep_maps=place) for index in ((0,), (0, "mid")))
    placed = placement(encoder, captions, z.shape[-1] // MAP_STRIDE) if place else None
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def loss(step: int) -> Tensor:
        clip = torch.rand(()) < CLIPS
        n = batch // 2 if clip else batch
        chosen = torch.randint(len(z), (n,))
        moments = torch.arange(2).expand(n, 2) if clip else torch.randint(2, (n, 1))
        x = z[chosen[:, None], moments].float()  # (n, F, 4, h, w)
        told, which = torch.rand(n) >= EMPTY, (torch.rand(n) < SHORT).long()
        prompt = torch.where(told[:, None], ids[chosen, which], nothing)
        t = torch.randint(1000, (n,))
        a = alpha_bar[t].float().view(n, 1, 1, 1, 1)
        eps = torch.randn_like(x)
        embedding = text(input_ids=prompt).last_hidden_state
        noisy = a.sqrt() * x + (1 - a).sqrt() * eps
        attend = clip_frames if clip else own
        attend.maps.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = unet(noisy, t, TextContext(embedding), attend)
        weight = (MOST_SNR * (1 - a) / a).clamp(max=1)  # min(SNR, 5) / SNR, SNR = alpha_bar / (1 - alpha_bar)
        error = (weight * (out.float() - eps).square()).mean()
        return error if placed is None else error + PLACING * placed.loss(attend.maps, chosen, moments, which, told)

    training.run(loss)


def stages(state: Path, stories: int, minutes: tuple[float, float, float, float]) -> Iterator[str]:
    """Do all stages, telling each as it begins."""
    state.mkdir(parents=True, exist_ok=True)
    yield "pictures"
    frames, captions = pictures(state, stories)
    yield "vae"
    vae = train_vae(state, frames, minutes[0])
    unit_latents(vae, frames)
    torch.save(vae.state_dict(), state / "vae-final.pt")
    for size, stage_minutes, rate, batch, start in (
        (64, minutes[1], 1e-3, 32, None),
        (128, minutes[2], 5e-4, 16, state / "unet-64.pt"),
    ):
        yield f"latents of {size} x {size}"
        z = latents(state, vae, frames, size)
        yield f"unet at {size // 4} x {size // 4}"
        train_unet(state, f"unet-{size}", z, captions, stage_minutes, rate, batch, start)
    yield "places"
    few = min(PLACED, stories)
    train_unet(state, "unet-placed", z[:few], captions[:few], minutes[3], 2e-4, 16, state / "unet-128.pt", place=True)
    (state / "configs.json").write_text(json.dumps({"unet": UNET, "vae": VAE_JSON, "scheduler": SCHEDULER}))
    yield "done"


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache/fz/mini-training", help="where state and log are kept"
    )
    parser.add_argument("--stories", type=int, default=STORIES)
    parser.add_argument(
        "--minutes", type=float, nargs=4, default=(15, 60, 120, 20), metavar=("VAE", "UNET16", "UNET32", "PLACES")
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    for stage in stages(arguments.state, arguments.stories, tuple(arguments.minutes)):
        print(time.strftime("%H:%M:%S"), stage, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv))


if __name__ == "__main__":
    leave(main())
