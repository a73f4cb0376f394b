"""What the miniature and the editor on it can do, measured on held-out clips with their counterfactuals: `python -m fz.mini.evaluate`.

Each held-out story has one thing, in plain style, and is edited in colour, in kind and in style, fused as the paper says and otherwise
(plain, without masks, from reconstruction's attention). Truth is what the world draws. One CSV line for each number of each clip, so that
an evaluation that was stopped goes on; then the table. Settings are `fz.config.PRESETS`, nothing is chosen by its result.
"""

import argparse
import csv
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fz import mini
from fz.budget import wanted
from fz.config import PRESETS, EditSettings
from fz.ddim import CLEAN, Schedule
from fz.edit import Source, edit, invert, reconstruct
from fz.fusion import MAP_STRIDE, FrameIndex, blend_mask
from fz.media import to_uint8
from fz.mini.data import held_out
from fz.mini.measure import Eye, load_eye, look
from fz.mini.sample import sample
from fz.mini.world import COLOURS, KINDS, STYLES, Story, caption, counterfactual, draw
from fz.plan import plan_edit, weights
from fz.store import KeptInMemory
from fz.vae import decode_clip, encode_clip
from fz.weights.load import Checkpoint, load_checkpoint

ORDER = FrameIndex((0, "mid"))
FULL = {"self_replace": (0.0, 1.0), "cross_replace": (0.0, 1.0), "threshold": None, "method": "replace"}
# what each kind of edit is done with beside the paper's preset
VARIANTS = {
    "attribute": {"fused": {}, "plain": {"method": "plain"}},
    "shape": {"fused": {}, "plain": {"method": "plain"}, "no self fusion": {"self_replace": 0.0}, "full self fusion": {"threshold": None}},
    "style": {"fused": {}, "plain": {"method": "plain"}},
}


@dataclass(frozen=True)
class Figure:
    """One number of one clip; True and False count as 1 and 0."""

    name: str
    value: float


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
    """The three counterfactuals of the i-th clip, by chance."""
    rng = np.random.default_rng([i, 3])
    thing = story.things[0]
    return {
        "attribute": counterfactual(story, colour=str(rng.choice([c for c in COLOURS if c != thing.colour]))),
        "shape": counterfactual(story, kind=str(rng.choice([k for k in KINDS if k != thing.kind]))),
        "style": counterfactual(story, style=str(rng.choice(STYLES[1:]))),
    }


@dataclass
class Bench:
    """A checkpoint ready to edit."""

    checkpoint: Checkpoint
    schedule: Schedule
    guidance: float
    eye: Eye

    def embed(self, prompt: str) -> Tensor:
        return self.checkpoint.text.encode([prompt])[0]

    def invert(self, z0: Tensor, prompt: str) -> Source:
        """The clip inverted, all queries and keys kept."""
        tokens = self.checkpoint.text.tokens(prompt)
        everything = plan_edit(EditSettings(prompt, **FULL), tokens, tokens, self.schedule.steps).fusion
        source = Source(self.embed(prompt), {CLEAN: z0}, kept=KeptInMemory())
        return invert(self.checkpoint.unet, source, self.schedule, ORDER, wanted([everything]))

    def edit(self, source: Source, prompt: str, target: str, settings: dict, guidance: float | None = None) -> np.ndarray:
        text = self.checkpoint.text
        plan = plan_edit(EditSettings(target, **settings), text.tokens(prompt), text.tokens(target), self.schedule.steps)
        guidance = self.guidance if guidance is None else guidance
        unet, empty = self.checkpoint.unet, self.embed("")
        z = edit(unet, source, self.embed(target), empty, self.schedule, guidance, ORDER, plan.fusion)
        return to_uint8(decode_clip(self.checkpoint.vae, z))


    def resample(self, source: Source, prompt: str, target: str, settings: dict) -> Source:
        """What reconstruction instead of inversion leaves of the source: its attention while it is sampled again, with guidance."""
        text, unet = self.checkpoint.text, self.checkpoint.unet
        fusion = plan_edit(EditSettings(target, **settings), text.tokens(prompt), text.tokens(target), self.schedule.steps).fusion
        empty, keep = self.embed(""), wanted([fusion])
        return reconstruct(unet, source, source.embedding, empty, self.schedule, self.guidance, ORDER, keep, KeptInMemory())


@torch.no_grad()
def measure_clip(bench: Bench, i: int, frames: int, size: int) -> Iterator[Figure]:
    """All figures of the i-th held-out clip."""
    story = dataclasses.replace(held_out(i, two=False), style="plain")
    drawn, prompt, thing = draw(story, frames, size), caption(story), story.things[0]
    unit = torch.from_numpy(drawn.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    z0 = encode_clip(bench.checkpoint.vae, unit)
    coded = to_uint8(decode_clip(bench.checkpoint.vae, z0))
    yield Figure("vae psnr", psnr(coded, drawn.frames))

    picture = to_uint8(sample(bench.checkpoint, [prompt], seed=i, steps=bench.schedule.steps, guidance=bench.guidance, size=size))
    seen = look(bench.eye, picture)[0]
    yield Figure("text to image: colour", seen.colour == thing.colour)
    yield Figure("text to image: scene", seen.scene == story.scene)
    yield Figure("text to image: kind", seen.kind == thing.kind)

    source = bench.invert(z0, prompt)
    yield Figure("reconstruction, fused: psnr", psnr(bench.edit(source, prompt, prompt, FULL, 1.0), drawn.frames))
    yield Figure("reconstruction, plain: psnr", psnr(bench.edit(source, prompt, prompt, {"method": "plain"}, 1.0), drawn.frames))
    yield Figure("blend mask: iou", mask_iou(bench, source, prompt, thing.kind, drawn.masks[0]))

    background = ~drawn.masks.any(0)
    for name, wished in targets(story, i).items():
        truth, target = draw(wished, frames, size), caption(wished)
        steady = drawn.masks[0][:-1] if name == "shape" else np.ones_like(background[:-1])
        for variant, settings in VARIANTS[name].items():
            out = bench.edit(source, prompt, target, {**PRESETS[name], **settings})
            yield from judge(bench, f"{name}, {variant}", out, truth.frames, wished, background & ~truth.masks.any(0), drawn.frames)
            yield Figure(f"{name}, {variant}: change along motion", change(out, truth.flow, steady))
        if name == "attribute":
            other = bench.resample(source, prompt, target, PRESETS[name])
            out = bench.edit(other, prompt, target, PRESETS[name])
            label = f"{name}, reconstruction attention"
            yield from judge(bench, label, out, truth.frames, wished, background & ~truth.masks.any(0), drawn.frames)


def judge(
    bench: Bench, label: str, out: np.ndarray, truth: np.ndarray, wished: Story, background: np.ndarray, source: np.ndarray
) -> Iterator[Figure]:
    """Is it what was wished, where, and how near to the counterfactual? An edit is right if most of its frames are."""
    seen = look(bench.eye, out)
    thing = wished.things[0]
    yield Figure(f"{label}: colour", np.mean([s.colour == thing.colour for s in seen]) > 0.5)
    yield Figure(f"{label}: kind", np.mean([s.kind == thing.kind for s in seen]) > 0.5)
    yield Figure(f"{label}: style", np.mean([s.style == wished.style for s in seen]) > 0.5)
    yield Figure(f"{label}: background psnr", psnr(out, source, background))
    yield Figure(f"{label}: psnr to counterfactual", psnr(out, truth))


def mask_iou(bench: Bench, source: Source, prompt: str, word: str, mask: np.ndarray) -> float:
    """IoU of the blend masks (tau = 0.3) with the true mask, reduced to the map's grid and 3x3 max-pooled likewise.

    The mean over frames' grid cells and over the steps that a shape edit fuses.
    """
    size = tuple(side // MAP_STRIDE for side in source.latents[CLEAN].shape[-2:])
    true = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[:, None], size)
    true = F.max_pool2d((true >= 0.5).float(), 3, stride=1, padding=1)[:, 0].bool()
    words = weights(bench.checkpoint.text.tokens(prompt), [word])
    ious = []
    for t in bench.schedule.timesteps[: bench.schedule.steps // 2]:
        found = blend_mask(source.maps[t], words, 0.3, size, size)
        ious.append(float((found & true).sum() / (found | true).sum()))
    return float(np.mean(ious))


# figure -> least mean over clips
BARS = {
    "vae psnr": 30, "text to image: colour": 0.95, "text to image: scene": 0.95, "text to image: kind": 0.85,
    "reconstruction, fused: psnr": 28, "blend mask: iou": 0.5, "attribute, fused: colour": 0.9, "attribute, fused: background psnr": 25,
    "shape, fused: kind": 0.7, "style, fused: style": 0.8,
}  # fmt: skip
# figure -> what it must be better than
ORDERINGS = [
    ("reconstruction, fused: psnr", "reconstruction, plain: psnr"),
    *((f"{name}, fused: psnr to counterfactual", f"{name}, plain: psnr to counterfactual") for name in VARIANTS),
    *((f"{name}, plain: change along motion", f"{name}, fused: change along motion") for name in VARIANTS),
    ("shape, fused: kind", "shape, full self fusion: kind"),
    ("shape, fused: psnr to counterfactual", "shape, no self fusion: psnr to counterfactual"),
    ("shape, fused: psnr to counterfactual", "shape, full self fusion: psnr to counterfactual"),
    ("attribute, fused: psnr to counterfactual", "attribute, reconstruction attention: psnr to counterfactual"),
]


def table(rows: list[tuple[int, str, float]]) -> list[str]:
    """Means over clips beside their bars, then the orderings with how many clips they hold in."""
    by_name: dict[str, dict[int, float]] = {}
    for clip, name, value in rows:
        by_name.setdefault(name, {})[clip] = value
    lines = [f"{'figure':58} {'mean':>8} {'clips':>6}  bar"]
    for name, values in by_name.items():
        mean = float(np.mean(list(values.values())))
        bar = "" if name not in BARS else f"{'reached' if mean >= BARS[name] else 'SHORT':8} {BARS[name]}"
        lines.append(f"{name:58} {mean:8.3f} {len(values):6d}  {bar}")
    lines.append("orderings (mean of the first beside the second; share of clips where it holds)")
    for better, worse in ORDERINGS:
        if better in by_name and worse in by_name:
            a, b = (np.array([by_name[n][c] for c in sorted(by_name[better].keys() & by_name[worse].keys())]) for n in (better, worse))
            held = "holds" if a.mean() > b.mean() else "FAILS"
            lines.append(f"  {held}  {better} {a.mean():.3f} > {worse} {b.mean():.3f}  ({(a > b).mean():.0%})")
    return lines


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [(int(clip), name, float(value)) for clip, name, value in csv.reader(file)]


def evaluate(bench: Bench, clips: int, frames: int, size: int, path: Path, say: Callable[[str], None]) -> list[tuple[int, str, float]]:
    """Figures of the first `clips` held-out clips; those that the CSV has are not measured again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    done = {clip for clip, _, _ in rows}
    for i in range(clips):
        if i in done:
            continue
        new = [(i, figure.name, float(figure.value)) for figure in measure_clip(bench, i, frames, size)]
        with open(path, "a", newline="") as file:
            csv.writer(file).writerows(new)
        rows += new
        say(f"clip {i + 1} of {clips}")
    return [row for row in rows if row[0] < clips]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fz.mini.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=mini.SIZE, help="side of the pictures")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=mini.DEFAULTS["guidance"])
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results/mini.csv"), help="figures by clip; measured clips are not done again")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.checkpoint or mini.checkpoint())
    bench = Bench(checkpoint, Schedule.of(checkpoint.scheduler, arguments.steps), arguments.guidance, load_eye())
    rows = evaluate(bench, arguments.clips, arguments.frames, arguments.size, arguments.out, lambda line: print(line, flush=True))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
