"""Tune a Stable Diffusion on one clip, from settings to a folder that is a checkpoint.

Beside the weights are loss.csv, loss.png and samples, and the state from which the same settings go on. What is
trained, and how, is `fz.tuning.trainer`'s question.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from fz import mini
from fz.clips.media import atomic, to_uint8, write_gif, write_json, write_png
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.errors import FzError, undamaged
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.memory.free import free_memory, lacks
from fz.memory.inversions import model_digest
from fz.memory.machine import pick_device
from fz.model.unet import UNet
from fz.model.vae import decode_clip
from fz.results import own
from fz.source import Source
from fz.tensors import write_pt
from fz.tuning import lora, trainer
from fz.tuning.folder import RECORD, SAMPLING, TuningFolder, sample_name, samples_of
from fz.tuning.pictures import digests, lessons, read
from fz.tuning.settings import TuneSettings
from fz.tuning.trainer import Lesson
from fz.weights.load import Checkpoint, load_checkpoint
from fz.weights.write import write_lora, write_tuned

Say = Callable[[str], None]

SAMPLED = 8  # pictures of a LoRA's that a sample shows, at most
# sums of what a step keeps, in full-size feature maps (F, C0, h, w) of one frame: with gradient checkpointing and
# without (bench/LOG.md)
KEPT_RECOMPUTED, KEPT_WHOLE = 50, 130


def tune(settings: TuneSettings, say: Say = print) -> dict[str, float]:
    """Tune and write the folder; returns the loss on the fixed draws, 'untuned' and 'tuned'. Goes on with what is in
    the folder.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with TuningFolder.claim(settings) as folder:
        return tuned_in(folder, settings, say)


def tuned_in(folder: TuningFolder, settings: TuneSettings, say: Say) -> dict[str, float]:
    """`tune`, in its folder."""
    device = pick_device(settings.device)
    checkpoint = load(settings)
    say(checkpoint.report)
    model = model_digest(checkpoint.unet)
    pictures = read(settings, checkpoint)
    for note in pictures.notes:
        say(note)
    about = {"model": model, **digests(settings, checkpoint, pictures), **as_json(settings)}
    folder.begin(about, settings.overwrite)
    before, out = folder.before, folder.work
    if before and "dataset" not in before:
        say(f"{out / RECORD} has no digest: whether its clip, captions and class images are these is not known")
    state = out / "state.pt"
    if before and state.exists():
        check_steps(state, settings.steps)
    recipe = recipe_of(settings)
    if settings.lora_rank:
        unet = lora.adapt(checkpoint.unet, settings.lora_rank, settings.seed)
    else:
        unet = trainer.inflate(checkpoint.unet, recipe, settings.rank, settings.seed)
    check_memory(settings, checkpoint, unet, pictures.video.frames.shape, device, say)
    if settings.dry_run:
        say("dry run: settings, checkpoint and clip are fine; nothing was computed")
        return {}
    out.mkdir(parents=True, exist_ok=True)
    if before and any(before.get(name) != about[name] for name in SAMPLING):
        # the last ones are made again; others stay, of steps that are past
        own.remove(out, list(samples_of({**before, "sample_every": 0})))
    write_json(out / RECORD, about)

    unet.to(device)
    checkpoint.vae.to(device)
    lesson, kinds = lessons(settings, checkpoint, pictures, device)
    kind = lora.PictureTuner if settings.lora_rank else trainer.Tuner
    tuner = kind(unet, recipe, alpha_bars(checkpoint), training(settings, recipe))
    losses = {"untuned": before["untuned"] if before.get("untuned") else tuner.fixed_loss(lesson)}
    if before and state.exists():
        restore(tuner, state, device)
        say(f"{tuner.steps} of {settings.steps} steps are in {folder.path}")
    write_json(out / RECORD, about | losses)

    tuned = dataclasses.replace(checkpoint, unet=unet, tuned=True)

    def sample() -> None:
        """After the steps that are sampled; the state is saved before, so that a tuning that is stopped meanwhile loses
        none.
        """
        if tuner.steps == settings.steps or (settings.sample_every and tuner.steps % settings.sample_every == 0):
            write_samples(out, tuner.steps, tuned, settings, lesson, pictures.video.fps)

    if tuner.steps and not (out / sample_name(tuner.steps, len(settings.sample_prompts) - 1)).exists():
        sample()
    with bar(settings.steps, tuner.steps) as progress:
        while tuner.steps < settings.steps:
            start = time.monotonic()
            also = [kinds[tuner.steps % len(kinds)]] if kinds else []
            progress.set_postfix(loss=f"{tuner.step([lesson, *also]):.4f}")
            progress.update()
            if tuner.steps == 1:
                say(f"about {(time.monotonic() - start) * settings.steps / 60:.1f} min")
            if tuner.steps == settings.steps or tuner.steps % settings.save_every == 0:
                save(out, tuner)
            sample()
    losses["tuned"] = tuner.fixed_loss(lesson)
    if settings.lora_rank:
        made = {name: (low.up, low.down) for name, low in lora.changes(unet).items()}
        write_lora(out / "lora.safetensors", made)
    else:
        write_tuned(out, tuned)
    write_json(out / RECORD, about | losses)
    folder.finish()
    gain = losses["tuned"] / losses["untuned"] - 1
    say(f"loss on {trainer.DRAWS} fixed draws: {losses['untuned']:.4f} -> {losses['tuned']:.4f} ({100 * gain:+.1f} %)")
    if settings.lora_rank:
        say(f"LoRA in {folder.path / 'lora.safetensors'}: for --lora, and for whatever reads kohya's names")
    else:
        say(f"tuned checkpoint in {folder.path}")
    return losses


def recipe_of(settings: TuneSettings) -> trainer.Recipe:
    return lora.RECIPE if settings.lora_rank else trainer.RECIPES[settings.recipe]


def load(settings: TuneSettings) -> Checkpoint:
    """In float32, on the CPU. Raises FzError if a prompt is too long for it."""
    checkpoint = load_checkpoint(
        mini.checkpoint(settings.checkpoint),
        vae=settings.vae,
        tokenizer=settings.tokenizer,
        model_config=settings.model_config,
        ema=settings.ema,
    )
    for prompt in (settings.prompt, settings.class_prompt or "", *settings.sample_prompts):
        checkpoint.text.tokens(prompt)
    return checkpoint


def check_memory(
    settings: TuneSettings,
    checkpoint: Checkpoint,
    unet: UNet,
    shape: Sequence[int],
    device: torch.device,
    say: Say,
) -> None:
    """Say what a tuning takes. Raises FzError where that is not free."""
    weights = trainer.trained(unet, recipe_of(settings)).values()
    if settings.lora_rank:
        shape = (min(shape[0], lora.PICTURES), *shape[1:])
    needed = predicted(unet, weights, shape, checkpoint.vae.config.stride, settings.recompute)
    free = free_memory(device)
    of_free = "what is free is unknown here" if free is None else f"of {free / 1e9:.1f} GB that are free"
    say(f"tuning needs about {needed / 1e9:.1f} GB beside the weights, {of_free}")
    if lacks(needed, free):
        less = "fewer --frames or a smaller --size" if settings.recompute else "no --keep-activations"
        raise FzError(
            f"memory: tuning needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Take {less}."
        )


def alpha_bars(checkpoint: Checkpoint) -> Sequence[float]:
    """Of every training timestep."""
    return Schedule.from_config(checkpoint.scheduler, checkpoint.scheduler.get("num_train_timesteps", 1000)).alpha_bars


def training(settings: TuneSettings, recipe: trainer.Recipe) -> trainer.TrainingSettings:
    return trainer.TrainingSettings(
        rate=recipe.rate if settings.rate is None else settings.rate,
        seed=settings.seed,
        accumulate=settings.accumulate,
        dtype=getattr(torch, settings.dtype),
        recompute=settings.recompute,
        snr_power=settings.snr_power,
    )


def as_json(settings: TuneSettings) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def predicted(unet: UNet, weights: Iterable[Tensor], frames: Sequence[int], stride: int, recompute: bool) -> int:
    """Bytes that a step takes beside the weights: activations, and of each trained weight its gradient and AdamW's two
    averages.
    """
    count, _, h, w = frames
    feature_map = count * (h // stride) * (w // stride) * unet.config.block_out_channels[0] * 4
    return (KEPT_RECOMPUTED if recompute else KEPT_WHOLE) * feature_map + 3 * sum(weight.nbytes for weight in weights)


def bar(steps: int, done: int) -> tqdm:
    return tqdm(total=steps, initial=done, desc="tuning", unit="step", mininterval=0.1 if sys.stderr.isatty() else 10.0)


def check_steps(state: Path, steps: int) -> None:
    """Raise FzError for a state that is past so many steps: none of fewer is left."""
    with intact(state):
        done = torch.load(state, weights_only=True, map_location="cpu", mmap=True)["steps"]
    if isinstance(done, int) and done > steps:
        raise FzError(
            f"steps: got {steps}, but {state.parent} holds a tuning of {done}, expected as many or more. Pass another "
            "--out, or --overwrite to begin again."
        )


def restore(tuner: trainer.Tuner, state: Path, device: torch.device) -> None:
    """Go on from a state. Raises FzError for one that cannot be read."""
    with intact(state):
        tuner.restore(torch.load(state, weights_only=True, map_location=device))


@contextlib.contextmanager
def intact(state: Path) -> Iterator[None]:
    """A state is read in the block. Raises FzError for one that cannot be."""
    with undamaged("tuning", state, "Remove it to begin again, or pass another --out."):
        if not state.is_file():
            raise OSError("it is no file")
        yield


def save(out: Path, tuner: trainer.Tuner) -> None:
    """The state from which the same command goes on, and the losses up to now."""
    write_pt(out / "state.pt", tuner.state())
    with atomic(out / "loss.csv") as part:
        part.write_text(
            "step,loss\n" + "".join(f"{i},{loss:.6f}\n" for i, loss in enumerate(tuner.losses, start=1)),
            encoding="utf-8",
        )
    draw_losses(out / "loss.png", tuner.losses)


def draw_losses(path: Path, losses: Sequence[float], size: tuple[int, int] = (640, 280)) -> None:
    """Each step's loss as a dot, and their running mean over a tenth of the steps as a line, over axes of steps and
    loss.
    """
    width, height = size
    picture = Image.new("RGB", size, "white")
    pen, top, last = ImageDraw.Draw(picture), max(losses) or 1.0, len(losses)
    left, right, bottom, upper = 60, width - 14, height - 34, 24

    def place(i: int, loss: float) -> tuple[float, float]:
        return left + (right - left) * i / max(last - 1, 1), bottom - (bottom - upper) * loss / top

    for part in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, part * top)[1]
        pen.line((left - 4, y, right, y), fill="black" if part == 0 else (225, 225, 225))
        pen.text((6, y - 6), f"{part * top:.4f}", fill="black")
    for i in sorted({round(part * (last - 1)) for part in (0, 0.25, 0.5, 0.75, 1)}):
        x = place(i, 0)[0]
        pen.line((x, bottom, x, bottom + 4), fill="black")
        pen.text((min(x - 3, right - 6 * len(str(i + 1))), bottom + 6), str(i + 1), fill="black")
    pen.line((left, upper, left, bottom), fill="black")
    pen.text((right - 24, bottom + 20), "step", fill="black")
    for i, loss in enumerate(losses):
        x, y = place(i, loss)
        pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(170, 170, 190))
    window = max(1, last // 10)
    means = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(last)]
    if len(means) > 1:
        pen.line([place(i, mean) for i, mean in enumerate(means)], fill=(30, 60, 160), width=2)
    pen.text((4, 4), f"loss of each step; line: mean of {window}", fill="black")
    write_png(path, np.asarray(picture))


def write_samples(
    out: Path, step: int, checkpoint: Checkpoint, settings: TuneSettings, lesson: Lesson, fps: float
) -> None:
    """The inverted clip sampled plainly under each sample prompt, after so many steps."""
    if not settings.sample_prompts:
        return
    schedule = Schedule.from_config(checkpoint.scheduler, settings.sample_steps)
    device = lesson.z.device
    anchors, own, z0 = trainer.ANCHORS, lesson.embedding, lesson.z
    if settings.lora_rank:
        anchors, own, z0 = FrameIndex(), lesson.embedding[0], lesson.z[:SAMPLED]
    model = Denoiser(checkpoint.unet, schedule, anchors)
    source = invert(model, Source(own, {CLEAN: z0}))
    negative, *targets = (checkpoint.text.encode([p])[0].to(device) for p in ("", *settings.sample_prompts))
    guidance = Guidance(negative, settings.guidance)
    for n, target in enumerate(targets):
        z = edit(model, source, Edit(target), guidance)
        write_gif(out / sample_name(step, n), to_uint8(decode_clip(checkpoint.vae, z)), fps)
