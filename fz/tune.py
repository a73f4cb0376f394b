"""`python -m fz.tune --video CLIP --prompt TEXT --out DIR`: tune a Stable Diffusion on one clip, for edits of shape.

DIR is then a checkpoint: `python -m fz.run --checkpoint DIR --video CLIP …`. Beside it are loss.csv, loss.png and
samples. The same command goes on where it was stopped. --config takes a released tuning YAML; flags are over it. What
is trained, and how, is `fz.tuning.trainer`.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fz.errors import FzError
from fz.settings import flags, released, tree
from fz.settings.config import ClipSettings
from fz.settings.limits import check_tuning
from fz.shell import Parser, answered, unknown

RECIPES = ("tune-a-video", "fatezero")
DTYPES = ("float32", "float16", "bfloat16")
# sums of what a step keeps, in full-size feature maps (F, C0, h, w) of one frame: with gradient checkpointing and
# without (bench/LOG.md)
KEPT_RECOMPUTED, KEPT_WHOLE = 50, 130
# of a released YAML, what tuning reads beside what editing does: their names -> settings
OF_TUNING = {
    "train_steps": "steps",
    "learning_rate": "rate",
    "seed": "seed",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "recompute",
    "mixed_precision": "dtype",
    "checkpointing_steps": "save_every",
    "validation_steps": "sample_every",
    "model_config.lora": "rank",
    "dataset_config.class_data_root": "class_images",
    "dataset_config.class_data_prompt": "class_prompt",
    "prior_preservation": "class_weight",
}
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "no": "float32", None: "float32"}


@dataclass(frozen=True)
class TuneSettings:
    """All of a tuning. rate None: the recipe's. class_images: pictures of the same kind of thing, so that it is not
    forgotten.
    """

    clip: ClipSettings
    prompt: str
    out: str
    checkpoint: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    model_config: str | None = None
    ema: str = "auto"
    recipe: str = "tune-a-video"
    steps: int = 100
    rate: float | None = None
    rank: int = 160
    accumulate: int = 1
    recompute: bool = True
    dtype: str = "float32"
    seed: int = 0
    class_images: str | None = None
    class_prompt: str | None = None
    class_weight: float = 1.0
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 0
    sample_steps: int = 20
    guidance: float = 7.5
    save_every: int = 50
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self):
        check_tuning(self)


# what may differ between a run and the one that goes on with it
FREE = (
    "out",
    "steps",
    "sample_prompts",
    "sample_every",
    "sample_steps",
    "guidance",
    "save_every",
    "overwrite",
    "dry_run",
    "threads",
)


def parser() -> argparse.ArgumentParser:
    out = Parser(
        prog="python -m fz.tune",
        description=__doc__.split("\n\n")[1],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def flag(name: str, setting: str, parse: Any, metavar: str, text: str, **more: Any) -> None:
        default = next((f.default for f in dataclasses.fields(TuneSettings) if f.name == setting), None)
        shown = (
            f" (default: {default})"
            if default not in (None, (), dataclasses.MISSING) and not isinstance(default, bool)
            else ""
        )
        out.add_argument(f"--{name}", dest=setting, type=parse, metavar=metavar, help=text + shown, **more)

    flag("video", "clip.path", str, "PATH", "the clip, as fz.run takes it; default with the miniature: its example")
    flag("prompt", "prompt", flags.sentence, "TEXT", "a sentence that describes it")
    flag("out", "out", str, "DIR", "the tuned checkpoint")
    flag(
        "checkpoint",
        "checkpoint",
        str,
        "PATH",
        "Stable Diffusion v1, a folder or a file; default: the bundled miniature",
    )
    flag("vae", "vae", str, "PATH", "another VAE")
    flag("tokenizer", "tokenizer", str, "DIR", "CLIP's tokenizer, for a checkpoint that has none")
    flag("model-config", "model_config", str, "DIR", "configs, for a single file that is not quite SD v1's shape")
    flag("ema", "ema", flags.one_of(("auto", "ema", "plain")), "WHICH", "of a file that has two sets of weights")
    flag("size", "clip.size", flags.size, "N|HxW", "as in fz.run (default: 512; the miniature's own)")
    flag("frames", "clip.frames", flags.count, "N|all", "how many frames (default: 8)")
    flag("start", "clip.start", flags.whole(0), "N", "the first frame")
    flag("every", "clip.every", flags.whole(1), "N", "take every N-th frame")
    flag("crop", "clip.crop", flags.crop, "L,R,T,B", "pixels to cut first")
    flag(
        "recipe",
        "recipe",
        flags.one_of(RECIPES),
        "NAME",
        "tune-a-video: queries and temporal attention; fatezero: low-rank temporal convolutions, too",
    )
    flag("steps", "steps", flags.whole(1), "N", "training steps in all")
    flag("rate", "rate", flags.number, "R", "AdamW's rate (default: 3e-5, fatezero 1e-5)")
    flag("rank", "rank", flags.whole(1), "N", "of the temporal convolutions")
    flag("accumulate", "accumulate", flags.whole(1), "N", "draws of noise a step")
    out.add_argument(
        "--keep-activations",
        dest="recompute",
        action="store_const",
        const=False,
        help="no gradient checkpointing: a third faster, several times the memory",
    )
    flag("dtype", "dtype", flags.one_of(DTYPES), "NAME", "of the products; weights stay float32")
    flag("seed", "seed", flags.whole(0), "N", "of all draws")
    flag("class-images", "class_images", str, "DIR", "pictures of its kind, learned beside the clip")
    flag("class-prompt", "class_prompt", flags.sentence, "TEXT", "what they show, as 'a photo of a car'")
    flag("class-weight", "class_weight", flags.number, "W", "of their loss")
    flag(
        "sample-prompt",
        "sample_prompts",
        flags.sentence,
        "TEXT",
        "sample it from the inverted clip on the way; again for more",
        action="append",
    )
    flag("sample-every", "sample_every", flags.whole(0), "N", "steps between samples; 0: only at the end")
    flag("sample-steps", "sample_steps", flags.whole(1), "N", "DDIM steps of a sample")
    flag("guidance", "guidance", flags.number, "W", "of a sample")
    flag("save-every", "save_every", flags.whole(1), "N", "steps between states from which the same command goes on")
    flag("device", "device", str, "NAME", "auto, cpu, cuda or mps")
    flag("threads", "threads", flags.whole(1), "N", "CPU threads")
    for name, text in (
        ("overwrite", "replace another tuning in DIR"),
        ("dry-run", "load and check everything, train nothing"),
    ):
        out.add_argument(f"--{name}", dest=name.replace("-", "_"), action="store_const", const=True, help=text)
    out.add_argument("--config", metavar="YAML", help="a released tuning config, read unchanged")
    out.add_argument("--set", action="append", metavar="KEY=VALUE", help="a value of it")
    out.add_argument("--debug", action="store_true", help="show an error's traceback")
    return out


def parse(argv: Sequence[str]) -> tuple[TuneSettings, list[str]]:
    """The settings and what the user should know. Raises FzError in one line."""
    all_flags = parser()
    given, rest = all_flags.parse_known_args(list(argv))
    if rest:
        raise FzError(unknown(rest, all_flags))
    given = vars(given)
    given.pop("debug", None)
    config, assignments = given.pop("config", None), given.pop("set", [])
    notes: list[str] = []
    values: dict[str, Any] = {}
    if config is not None or assignments:
        content = tree.read(config) if config is not None else {}
        for assignment in assignments:
            tree.assign(content, assignment)
        values = of_yaml(content, notes)
        if config is not None and "out" not in values:
            values["out"] = str(Path("results") / f"tuned-{Path(config).stem}")
    values |= given
    if values.get("checkpoint") is None:
        miniature(values)
    clip = {name.removeprefix("clip."): value for name, value in values.items() if name.startswith("clip.")}
    if "path" not in clip:
        raise FzError("video: got none, expected a clip, a folder of frames or an image, as --video clip.mp4.")
    for name, example in (("prompt", "--prompt 'a silver jeep on a road'"), ("out", "--out tuned-jeep")):
        if not values.get(name):
            raise FzError(f"{name}: got none, expected one, as {example}.")
    top = {name: value for name, value in values.items() if not name.startswith("clip.")}
    top["sample_prompts"] = tuple(top.get("sample_prompts", ()))
    settings = TuneSettings(ClipSettings(**clip), **top)
    if settings.rate is not None and not 0 < settings.rate < 1:
        raise FzError(f"rate: got {settings.rate}, expected a number between 0 and 1, as 3e-5.")
    if (settings.class_images is None) != (settings.class_prompt is None):
        raise FzError(
            "class images: got only one of --class-images and --class-prompt, expected both, as 'a photo of a car'."
        )
    return settings, notes


def miniature(values: dict[str, Any]) -> None:
    """Defaults of a tuning of the bundled checkpoint."""
    from fz import mini

    if "clip.path" not in values:
        example = mini.example()
        values["clip.path"] = example["clip.path"]
        values.setdefault("prompt", example["source"])
    values.setdefault("clip.size", mini.SIZE)
    values.setdefault("guidance", mini.DEFAULTS["guidance"])


def of_yaml(content: tree.Tree, notes: list[str]) -> dict[str, Any]:
    """A released config's settings: the clip as editing reads it, and OF_TUNING. Class images that are not there are
    left out, and said.
    """
    translation = released.translate(content)
    names = {field.name for field in dataclasses.fields(TuneSettings)}
    found = {
        k: v
        for k, v in translation.overlay.items()
        if k.startswith("clip.") or k in names - {"steps", "guidance", "seed"}
    }
    overlay, config = translation.overlay, tree.Config(content)
    found |= {
        ours: overlay[theirs]
        for ours, theirs in (("prompt", "source"), ("sample_steps", "steps"), ("guidance", "guidance"))
        if theirs in overlay
    }
    found["sample_prompts"] = tuple(
        v for k, v in sorted(overlay.items()) if k.startswith("edits.") and k.endswith(".target")
    )
    for name, setting in OF_TUNING.items():
        value = config.get(name)
        if value is not None:
            found[setting] = checked(name, setting, value)
    # what the released training does: low-rank convolutions where it is told so
    found["recipe"] = (
        "fatezero" if config.get("train_temporal_conv") or config.get("model_config.lora") else "tune-a-video"
    )
    if (folder := found.get("class_images")) and not Path(folder).is_dir():
        notes.append(f"class images: {folder} is not there; tuned without them")
        found.pop("class_images"), found.pop("class_prompt", None)
    return found


def checked(name: str, setting: str, value: Any) -> Any:
    """A YAML's value as the setting's kind. Raises FzError."""
    kinds = {"rate": float, "class_weight": float, "class_images": str, "class_prompt": str, "recompute": bool}
    if setting == "dtype":
        if value not in PRECISIONS:
            raise FzError(f"{name}: got {value!r}, expected one of fp16, bf16, no.")
        return PRECISIONS[value]
    kind = kinds.get(setting, int)
    try:
        converted = kind(value)
        if kind is int and (isinstance(value, bool) or converted != float(value) or converted < 0):
            raise ValueError
    except (TypeError, ValueError):
        raise FzError(f"{name}: got {value!r}, expected a {'whole number' if kind is int else 'number'}.") from None
    return converted


# ---- the work ----------------------------------------------------------------------------------------------


def tune(settings: TuneSettings, say: Any = print) -> dict[str, float]:
    """Tune and write the folder; returns the loss on the fixed draws, 'untuned' and 'tuned'. Goes on with what is in
    the folder.
    """
    import torch

    from fz.clips.media import write_json
    from fz.clips.video import read_clip
    from fz.ddim import Schedule
    from fz.memory.budget import free_memory
    from fz.memory.inversions import model_digest
    from fz.memory.machine import pick_device
    from fz.model.vae import encode_clip
    from fz.tuning import trainer as tuning
    from fz.weights.load import load_checkpoint
    from fz.weights.write import write_tuned

    if settings.threads:
        torch.set_num_threads(settings.threads)
    device, recipe, out = pick_device(settings.device), tuning.RECIPES[settings.recipe], Path(settings.out)
    path = settings.checkpoint
    if path is None:
        from fz import mini

        path = mini.checkpoint()
    checkpoint = load_checkpoint(
        path, vae=settings.vae, tokenizer=settings.tokenizer, model_config=settings.model_config, ema=settings.ema
    )
    say(checkpoint.report)
    model = model_digest(checkpoint.unet)
    multiple = checkpoint.vae.config.stride * checkpoint.unet.config.stride
    checkpoint.text.tokens(settings.prompt)
    video = read_clip(settings.clip, multiple)
    pictures = (
        read_clip(
            dataclasses.replace(settings.clip, path=settings.class_images, frames=None, start=0, every=1), multiple
        ).frames
        if settings.class_images
        else None
    )
    before = claim(settings, model)
    unet = tuning.inflate(checkpoint.unet, recipe, settings.rank, settings.seed)
    weights = tuning.trained(unet, recipe).values()
    needed = predicted(unet, weights, video.frames.shape, checkpoint.vae.config.stride, settings.recompute)
    free = free_memory(device)
    say(f"tuning needs about {needed / 1e9:.1f} GB beside the weights, of {free / 1e9:.1f} GB that are free")
    if needed > free:
        less = "fewer --frames or a smaller --size" if settings.recompute else "no --keep-activations"
        raise FzError(
            f"memory: tuning needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Take {less}."
        )
    if settings.dry_run:
        say("dry run: settings, checkpoint and clip are fine; nothing was computed")
        return {}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "tuning.json", {"model": model, **as_json(settings)})

    unet.to(device)
    checkpoint.vae.to(device)
    with torch.no_grad():
        lessons = [
            tuning.Lesson(
                encode_clip(checkpoint.vae, video.frames.to(device)).float(), embed(checkpoint, settings.prompt, device)
            )
        ]
        kinds = None if pictures is None else encode_clip(checkpoint.vae, pictures.to(device)).float()
    alpha_bars = Schedule.of(checkpoint.scheduler, checkpoint.scheduler.get("num_train_timesteps", 1000)).alpha_bars
    rate = recipe.rate if settings.rate is None else settings.rate
    tuner = tuning.Tuner(
        unet,
        recipe,
        alpha_bars,
        rate,
        settings.seed,
        settings.accumulate,
        getattr(torch, settings.dtype),
        settings.recompute,
    )
    losses = {"untuned": before["untuned"] if before.get("untuned") else tuner.fixed_loss(lessons[0])}
    state = out / "state.pt"
    if before and state.exists():
        tuner.restore(torch.load(state, weights_only=True, map_location=device))
        say(f"{tuner.steps} of {settings.steps} steps are in {out}")
    write_json(out / "tuning.json", {"model": model, **as_json(settings), "untuned": losses["untuned"]})

    tuned = dataclasses.replace(checkpoint, unet=unet, tuned=True)
    kind_prompt = embed(checkpoint, settings.class_prompt, device) if kinds is not None else None
    with bar(settings.steps, tuner.steps) as progress:
        while tuner.steps < settings.steps:
            extra = (
                []
                if kinds is None
                else [tuning.Lesson(kinds[tuner.steps % len(kinds)][None], kind_prompt, settings.class_weight)]
            )
            start = time.monotonic()
            progress.set_postfix(loss=f"{tuner.step([*lessons, *extra]):.4f}")
            progress.update()
            if tuner.steps == 1:
                say(f"about {(time.monotonic() - start) * settings.steps / 60:.1f} min")
            last = tuner.steps == settings.steps
            if last or tuner.steps % settings.save_every == 0:
                save(out, tuner)
            if last or (settings.sample_every and tuner.steps % settings.sample_every == 0):
                write_samples(out, tuned, settings, lessons[0], tuner.steps, video.fps)
    losses["tuned"] = tuner.fixed_loss(lessons[0])
    write_tuned(out, tuned)
    write_json(out / "tuning.json", {"model": model, **as_json(settings), **losses})
    gain = losses["tuned"] / losses["untuned"] - 1
    say(f"loss on {tuning.DRAWS} fixed draws: {losses['untuned']:.4f} -> {losses['tuned']:.4f} ({100 * gain:+.0f} %)")
    say(f"tuned checkpoint in {out}")
    return losses


def claim(settings: TuneSettings, model: str) -> dict[str, Any]:
    """What an earlier run of the same tuning left in the folder, {} for a new one. Raises FzError if the folder holds
    anything else.
    """
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise FzError(f"out: {out} is a file, expected a folder. Pass another --out.")
    if not out.is_dir() or not any(out.iterdir()) or settings.overwrite:
        if settings.overwrite and not settings.dry_run:
            (out / "state.pt").unlink(missing_ok=True)
        return {}
    try:
        before = json.loads((out / "tuning.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FzError(
            f"out: {out} holds other files. Pass another --out, or --overwrite to write there all the same."
        ) from None
    now = {"model": model, **as_json(settings)}
    different = [name for name in now if name not in FREE and now[name] != before.get(name)]
    if different:
        raise FzError(
            f"out: {out} holds a tuning with another {', '.join(different)}. Pass another --out, or --overwrite to "
            "replace it."
        )
    return before


def as_json(settings: TuneSettings) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def predicted(unet: Any, weights: Iterable[Any], frames: Sequence[int], stride: int, recompute: bool) -> int:
    """Bytes that a step takes beside the weights: activations, and of each trained weight its gradient and AdamW's two
    averages.
    """
    count, _, h, w = frames
    feature_map = count * (h // stride) * (w // stride) * unet.config.block_out_channels[0] * 4
    return (KEPT_RECOMPUTED if recompute else KEPT_WHOLE) * feature_map + 3 * sum(weight.nbytes for weight in weights)


def embed(checkpoint: Any, prompt: str, device: Any) -> Any:
    return checkpoint.text.encode([prompt])[0].to(device)


def bar(steps: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, desc="tuning", unit="step", mininterval=0.1 if sys.stderr.isatty() else 10.0)


def save(out: Path, tuner: Any) -> None:
    """The state from which the same command goes on, and the losses up to now."""
    import torch

    from fz.clips.media import atomic

    with atomic(out / "state.pt") as part:
        torch.save(tuner.state(), part)
    with atomic(out / "loss.csv") as part:
        part.write_text(
            "step,loss\n" + "".join(f"{i},{loss:.6f}\n" for i, loss in enumerate(tuner.losses, start=1)),
            encoding="utf-8",
        )
    draw_losses(out / "loss.png", tuner.losses)


def draw_losses(path: Path, losses: Sequence[float], size: tuple[int, int] = (640, 240)) -> None:
    """Each step's loss as a dot, and their running mean over a tenth of the steps as a line."""
    import numpy as np
    from PIL import Image, ImageDraw

    from fz.clips.media import write_png

    width, height = size
    picture = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(picture), max(losses) or 1.0

    def place(i: int, loss: float) -> tuple[float, float]:
        return 40 + (width - 50) * i / max(len(losses) - 1, 1), height - 20 - (height - 40) * loss / top

    for i, loss in enumerate(losses):
        x, y = place(i, loss)
        pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(170, 170, 190))
    window = max(1, len(losses) // 10)
    means = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(len(losses))]
    if len(means) > 1:
        pen.line([place(i, mean) for i, mean in enumerate(means)], fill=(30, 60, 160), width=2)
    pen.text((4, 4), f"loss, {len(losses)} steps; top {top:.3f}; line: mean of {window}", fill="black")
    write_png(path, np.asarray(picture))


def write_samples(out: Path, checkpoint: Any, settings: TuneSettings, lesson: Any, step: int, fps: float) -> None:
    """samples/STEP-N.gif: the inverted clip sampled plainly under each sample prompt."""
    if not settings.sample_prompts:
        return
    from fz.clips.media import to_uint8, write_gif
    from fz.ddim import CLEAN, Schedule
    from fz.edit import Source, edit, invert
    from fz.model.vae import decode_clip
    from fz.tuning.trainer import ANCHORS

    schedule = Schedule.of(checkpoint.scheduler, settings.sample_steps)
    source = invert(checkpoint.unet, Source(lesson.embedding, {CLEAN: lesson.z}), schedule, ANCHORS)
    negative = embed(checkpoint, "", lesson.z.device)
    for n, prompt in enumerate(settings.sample_prompts):
        target = embed(checkpoint, prompt, lesson.z.device)
        z = edit(checkpoint.unet, source, target, negative, schedule, settings.guidance, ANCHORS, None)
        write_gif(out / "samples" / f"{step:05d}-{n}.gif", to_uint8(decode_clip(checkpoint.vae, z)), fps)


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    argv = list(sys.argv[1:] if argv is None else argv)
    return answered(lambda: answer(argv), "The same command goes on from the last saved step.", debug="--debug" in argv)


def answer(argv: Sequence[str]) -> None:
    settings, notes = parse(argv)
    for note in notes:
        print(note, flush=True)
    tune(settings, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
