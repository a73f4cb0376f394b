"""What the miniature and the editor on it can do, measured on held-out stories with their counterfactuals: `python -m fz.mini.evaluate`.

Pictures from captions, and clips with one thing, in plain style, edited in colour, in kind and in style, fused as the paper says and
otherwise (plain, without masks, from reconstruction's attention). Truth is what the world draws. One JSON file for each picture and clip,
so that an evaluation that was stopped goes on and a second one changes nothing; then `fz.mini.bars`' table. Settings are
`fz.settings.config.PRESETS`, nothing is chosen by its result.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fz import mini
from fz.attention import MAP_STRIDE
from fz.clips.media import atomic, to_uint8, write_json
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert, reconstruct
from fz.frames import FrameIndex
from fz.guidance import Guidance
from fz.masks import blend_mask
from fz.memory.budget import wanted
from fz.memory.inversions import digest, model_digest
from fz.memory.kept import KeptInMemory
from fz.memory.machine import start_alone
from fz.mini.bars import Row, table
from fz.mini.data import as_given, held_out
from fz.mini.measure import Eye, hue_name, load_eye, look, remains
from fz.mini.sample import sample
from fz.mini.world import COLOURS, KINDS, STYLES, Drawn, Story, caption, counterfactual
from fz.model import fast_cpu
from fz.model.vae import decode_clip, encode_clip
from fz.prompts.plan import plan_edit, weights
from fz.settings.applications import REMOVAL, without
from fz.settings.config import PRESETS, EditSettings
from fz.shell import Parser, answered, leave
from fz.source import Source
from fz.weights.load import Checkpoint, load_checkpoint

ORDER = FrameIndex((0, "mid"))
FULL = {"self_replace": (0.0, 1.0), "cross_replace": (0.0, 1.0), "threshold": None, "align": "replace"}
# what each kind of edit is done with beside the paper's preset
VARIANTS = {
    "attribute": {"fused": {}, "plain": {"align": "plain"}},
    "shape": {
        "fused": {},
        "plain": {"align": "plain"},
        "no self fusion": {"self_replace": 0.0},
        "full self fusion": {"threshold": None},
    },
    "style": {"fused": {}, "plain": {"align": "plain"}},
}
REMOVALS = {
    "fused": {},
    "plain": {"align": "plain"},
    "object not hidden": {"remove": None},
    "background kept": {"keep_background": True},
}


@dataclass(frozen=True)
class Figure:
    """One number of one picture or clip; True and False count as 1 and 0."""

    name: str
    value: float


@dataclass(frozen=True)
class Setup:
    """What figures depend on beside the checkpoint. steps: of clips; picture_steps: of pictures from captions."""

    frames: int = 8
    size: int = mini.SIZE
    steps: int = mini.DEFAULTS["steps"]
    picture_steps: int = 50
    guidance: float = mini.DEFAULTS["guidance"]


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """dB of uint8 pictures (F, H, W, 3), over pixels `where` (F, H, W) if given."""
    difference = (a.astype(np.float64) - b) ** 2
    mean = difference.mean() if where is None else difference[where].mean()
    return float(10 * np.log10(255**2 / max(mean, 1e-6)))


def change(frames: np.ndarray, flow: np.ndarray, seen: np.ndarray) -> float:
    """How much pixels change along their true motion, mean absolute levels: temporal consistency (less is steadier).

    flow (F - 1, H, W, 2) in pixels; seen (F - 1, H, W): where to look.
    """
    count, h, w = frames.shape[:3]
    y, x = np.mgrid[:h, :w]
    grid = np.stack([(x + flow[..., 0]) / (w - 1), (y + flow[..., 1]) / (h - 1)], -1) * 2 - 1
    later = torch.from_numpy(frames[1:].astype(np.float32)).permute(0, 3, 1, 2)
    moved = F.grid_sample(later, torch.from_numpy(grid.astype(np.float32)), padding_mode="border", align_corners=True)
    return float(np.abs(moved.permute(0, 2, 3, 1).numpy() - frames[:-1])[seen].mean())


def targets(story: Story, i: int) -> dict[str, Story]:
    """The counterfactuals of the i-th clip, one of each kind of edit, by chance."""
    rng = np.random.default_rng([i, 3])
    thing = story.things[0]
    return {
        "attribute": counterfactual(story, colour=str(rng.choice([c for c in COLOURS if c != thing.colour]))),
        "shape": counterfactual(story, kind=str(rng.choice([k for k in KINDS if k != thing.kind]))),
        "style": counterfactual(story, style=str(rng.choice(STYLES[1:]))),
    }


@dataclass(frozen=True)
class Bench:
    """A checkpoint ready to edit."""

    checkpoint: Checkpoint
    eye: Eye
    setup: Setup

    @property
    def schedule(self) -> Schedule:
        return Schedule.from_config(self.checkpoint.scheduler, self.setup.steps)

    @property
    def model(self) -> Denoiser:
        return Denoiser(self.checkpoint.unet, self.schedule, ORDER)

    def guidance(self, scale: float | None = None) -> Guidance:
        return Guidance(self.embed(""), self.setup.guidance if scale is None else scale)

    def key(self) -> str:
        """Of all that its figures depend on."""
        models = (self.checkpoint.unet, self.checkpoint.vae, self.checkpoint.text.model, self.eye)
        return digest(self.setup, *(model_digest(model) for model in models))

    def embed(self, prompt: str) -> Tensor:
        return self.checkpoint.text.encode([prompt])[0]

    def invert(self, z0: Tensor, prompt: str) -> Source:
        """The clip inverted, all queries and keys kept."""
        tokens = self.checkpoint.text.tokens(prompt)
        everything = plan_edit(EditSettings(prompt, **FULL), tokens, tokens, self.schedule.steps).fusion
        return invert(
            self.model, Source(self.embed(prompt), {CLEAN: z0}, store=KeptInMemory(), keep=wanted([everything]))
        )

    def edit(
        self, source: Source, prompt: str, target: str, settings: dict, guidance: float | None = None
    ) -> np.ndarray:
        text = self.checkpoint.text
        plan = plan_edit(
            EditSettings(target, **settings), text.tokens(prompt), text.tokens(target), self.schedule.steps
        )
        z = edit(self.model, source, Edit(self.embed(target), plan.fusion, plan.region), self.guidance(guidance))
        return to_uint8(decode_clip(self.checkpoint.vae, z))

    def resample(self, source: Source, prompt: str, target: str, settings: dict) -> Source:
        """What reconstruction instead of inversion leaves of the source: its attention while it is sampled again, with guidance."""
        text = self.checkpoint.text
        fusion = plan_edit(
            EditSettings(target, **settings), text.tokens(prompt), text.tokens(target), self.schedule.steps
        ).fusion
        again = Source(source.embedding, source.latents, store=KeptInMemory(), keep=wanted([fusion]))
        return reconstruct(self.model, again, self.guidance())


def held_out_story(i: int) -> Story:
    """With one thing, in plain style."""
    return dataclasses.replace(held_out(i, two=False), style="plain")


def code(bench: Bench, frames: np.ndarray) -> Tensor:
    """Frames (F, H, W, 3) uint8 to scaled latents."""
    return encode_clip(bench.checkpoint.vae, torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1)


@torch.no_grad()
def measure_picture(bench: Bench, i: int) -> Iterator[Figure]:
    """The i-th held-out story: its drawing through the VAE, at the size that the VAE is for, and a picture sampled from its caption."""
    story, setup = held_out_story(i), bench.setup
    thing, drawn = story.things[0], as_given(story, 1, 128).frames
    yield Figure("vae psnr at 128 px", psnr(to_uint8(decode_clip(bench.checkpoint.vae, code(bench, drawn))), drawn))
    picture = sample(bench.checkpoint, [caption(story)], i, setup.picture_steps, setup.guidance, setup.size)
    seen = look(bench.eye, to_uint8(picture))[0]
    yield Figure("text to image: colour", seen.colour == thing.colour)
    yield Figure("text to image: scene", seen.scene == story.scene)
    yield Figure("text to image: kind", seen.kind == thing.kind)


@torch.no_grad()
def measure_clip(bench: Bench, i: int) -> Iterator[Figure]:
    """All figures of editing the i-th held-out clip."""
    story, setup = held_out_story(i), bench.setup
    drawn, prompt = as_given(story, setup.frames, setup.size), caption(story)
    z0 = code(bench, drawn.frames)
    yield Figure("vae psnr", psnr(to_uint8(decode_clip(bench.checkpoint.vae, z0)), drawn.frames))

    source = bench.invert(z0, prompt)
    yield Figure("reconstruction, fused: psnr", psnr(bench.edit(source, prompt, prompt, FULL, 1.0), drawn.frames))
    yield Figure(
        "reconstruction, plain: psnr", psnr(bench.edit(source, prompt, prompt, {"align": "plain"}, 1.0), drawn.frames)
    )
    yield Figure("blend mask: iou", mask_iou(bench, source, prompt, story.things[0].kind, drawn.masks[0]))

    for name, wished in targets(story, i).items():
        truth, target = as_given(wished, setup.frames, setup.size), caption(wished)
        # a shape edit is to keep the thing's motion, the others all of the picture's
        steady = drawn.masks[0][:-1] if name == "shape" else np.ones_like(drawn.masks[0][:-1])
        for variant, settings in VARIANTS[name].items():
            out = bench.edit(source, prompt, target, {**PRESETS[name], **settings})
            yield from judge(bench, f"{name}, {variant}", out, wished, truth, drawn)
            if setup.frames > 1:
                yield Figure(f"{name}, {variant}: change along motion", change(out, truth.flow, steady))
        if name == "attribute":
            other = bench.resample(source, prompt, target, PRESETS[name])
            out = bench.edit(other, prompt, target, PRESETS[name])
            yield from judge(bench, f"{name}, reconstruction attention", out, wished, truth, drawn)


@torch.no_grad()
def measure_removal(bench: Bench, i: int) -> Iterator[Figure]:
    """Removing the thing of the i-th held-out clip. Truth is its scene drawn without it; right is a clip of which most frames are empty.

    How often the judge says 'no object' of the source and of the true empty scene is measured too: 0 and 1 if it never errs.
    """
    story, setup = held_out_story(i), bench.setup
    thing, prompt = story.things[0], caption(story)
    drawn = as_given(story, setup.frames, setup.size)
    truth = as_given(dataclasses.replace(story, things=()), setup.frames, setup.size).frames
    words = f"{thing.colour} {thing.kind}"
    target = without(prompt, words)

    def empty(frames: np.ndarray) -> bool:
        return np.mean(remains(bench.eye, frames, truth, drawn.masks[0], thing.colour)) < 0.5

    yield Figure("removal, source: no object", empty(drawn.frames))
    yield Figure("removal, true empty scene: no object", empty(truth))
    source = bench.invert(code(bench, drawn.frames), prompt)
    for variant, settings in REMOVALS.items():
        out = bench.edit(source, prompt, target, {"remove": words, **REMOVAL, **settings})
        yield Figure(f"removal, {variant}: no object", empty(out))
        yield Figure(f"removal, {variant}: psnr to the empty scene", psnr(out, truth))
        yield Figure(f"removal, {variant}: background psnr", psnr(out, drawn.frames, ~drawn.masks.any(0)))


def judge(bench: Bench, label: str, out: np.ndarray, wished: Story, truth: Drawn, source: Drawn) -> Iterator[Figure]:
    """Is it what was wished, where, and how near to the counterfactual? An edit is right if most of its frames are.

    The colour is that of the wished thing's own area, whatever else the edit did.
    """
    seen, thing = look(bench.eye, out), wished.things[0]
    hues = [hue_name(frame, mask) for frame, mask in zip(out, truth.masks[0], strict=True)]
    yield Figure(f"{label}: colour", np.mean([hue == thing.colour for hue in hues]) > 0.5)
    yield Figure(f"{label}: kind", np.mean([s.kind == thing.kind for s in seen]) > 0.5)
    yield Figure(f"{label}: style", np.mean([s.style == wished.style for s in seen]) > 0.5)
    yield Figure(f"{label}: background psnr", psnr(out, source.frames, ~(source.masks.any(0) | truth.masks.any(0))))
    yield Figure(f"{label}: psnr to counterfactual", psnr(out, truth.frames))


def mask_iou(bench: Bench, source: Source, prompt: str, word: str, mask: np.ndarray) -> float:
    """IoU of the blend masks (tau = 0.3) with the true mask, reduced to the map's grid and 3x3 max-pooled likewise.

    The mean over frames' grid cells and over the steps that a shape edit fuses.
    """
    size = tuple(side // MAP_STRIDE for side in source.latents[CLEAN].shape[-2:])
    true = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[:, None], size)
    true = F.max_pool2d((true >= 0.5).float(), 3, stride=1, padding=1)[:, 0].bool()
    words = weights(bench.checkpoint.text.tokens(prompt), [word])
    ious = []
    for t in bench.schedule.timesteps[: max(1, bench.schedule.steps // 2)]:
        found = blend_mask(source.maps[t], words, 0.3, size, size)
        ious.append(float((found & true).sum() / (found | true).sum()))
    return float(np.mean(ious))


# ---- many of them --------------------------------------------------------------------------------------------------------

MEASURES = {"picture": measure_picture, "clip": measure_clip, "removal": measure_removal}


def figures_of(bench: Bench, key: str, part: str, i: int, folder: Path) -> list[Row]:
    """The figures of the i-th picture or clip: read where they were measured before, with the same key, else measured and written."""
    file = folder / f"{part}-{i:04d}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, cut short or not ours: done again
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] == key:
            return [(i, name, value) for name, value in content["figures"].items()]
    figures = {figure.name: float(figure.value) for figure in MEASURES[part](bench, i)}
    write_json(file, {"key": key, "figures": figures})
    return [(i, name, value) for name, value in figures.items()]


def evaluate(
    setup: Setup, checkpoint: str, jobs: list[tuple[str, int]], folder: Path, processes: int = 1
) -> Iterator[list[Row]]:
    """The rows of each of the jobs (a name of MEASURES, number), as they are done. More than one process: each has one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        bench = ready(setup, checkpoint)
        key = bench.key()
        yield from (figures_of(bench, key, part, i, folder) for part, i in jobs)
        return
    # processes of their own: a forked one may hang in a library's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start, initargs=(setup, checkpoint)) as pool:
        for done in as_completed([pool.submit(work, part, i, folder) for part, i in jobs]):
            yield done.result()


def ready(setup: Setup, checkpoint: str) -> Bench:
    fast_cpu.keep_freed_memory()
    loaded = load_checkpoint(checkpoint)
    unet, _ = fast_cpu.prepare(loaded.unet, (setup.size // loaded.vae.config.stride,) * 2, setup.frames)
    return Bench(dataclasses.replace(loaded, unet=unet), load_eye(), setup)


OWN: list[tuple[Bench, str]] = []  # a worker process's bench and its key


def start(setup: Setup, checkpoint: str) -> None:
    start_alone()
    bench = ready(setup, checkpoint)
    OWN.append((bench, bench.key()))


def work(part: str, i: int, folder: Path) -> list[Row]:
    return figures_of(*OWN[0], part, i, folder)


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clips", type=int, default=64, help="clips that are edited, nine edits and two reconstructions each"
    )
    parser.add_argument("--pictures", type=int, default=64, help="pictures that are sampled from captions")
    parser.add_argument("--removals", type=int, default=64, help="clips from which the thing is removed")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=mini.SIZE, help="side of the pictures")
    parser.add_argument("--steps", type=int, default=mini.DEFAULTS["steps"], help="of an edit")
    parser.add_argument("--picture-steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=mini.DEFAULTS["guidance"])
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--processes", type=int, default=1, help="one core each")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/mini"),
        help="a file a picture or clip; what is there is not done again",
    )
    given = parser.parse_args(argv)
    setup = Setup(given.frames, given.size, given.steps, given.picture_steps, given.guidance)
    jobs = [("picture", i) for i in range(given.pictures)] + [("clip", i) for i in range(given.clips)]
    jobs += [("removal", i) for i in range(given.removals)]
    rows: list[Row] = []
    for n, found in enumerate(
        evaluate(setup, given.checkpoint or mini.checkpoint(), jobs, given.out, given.processes), start=1
    ):
        rows += found
        print(f"{n} of {len(jobs)}", end="\r" if n < len(jobs) else "\n", flush=True)
    lines = [f"# {platform.machine()}, torch {torch.__version__}; {setup}", *table(sorted(rows))]
    print("\n".join(lines))
    with atomic(given.out / "table.txt") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv))


if __name__ == "__main__":
    leave(main())
