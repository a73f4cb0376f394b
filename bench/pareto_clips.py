"""What do held-out clips of the miniature look like, edited in each of `bench.pareto_ways`, and how long does it take?

Each is inverted once for each way and edited in colour, kind and style; truth is what the world draws. One JSON file
for each clip and way, so that a measurement that was stopped goes on.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.here import CPU, machine
from bench.pareto_ways import EXACT, WAYS
from bench.summary import interval
from fz.clips.media import atomic
from fz.denoiser import Denoiser
from fz.guidance import Guidance
from fz.memory.inversions import digest
from fz.mini.edited import ORDER, Bench
from fz.mini.eye import load_eye
from fz.mini.figures import HeldOutClip, held_out_story, judge, targets
from fz.mini.setup import Setup
from fz.mini.world import caption
from fz.model import fast_cpu
from fz.model.deep import Reuse
from fz.records import NUMBER
from fz.results.cells import cell
from fz.settings.config import PRESETS, Settings
from fz.weights.load import Checkpoint

# of an edit of each kind, what is to be right
ASKED = {"attribute": "colour", "shape": "kind", "style": "style"}
FIGURES = {"background psnr": "background, dB", "outline iou": "outline IoU", "right": "right", "seconds": "seconds"}
CELL = {"figures": dict.fromkeys(FIGURES, NUMBER)}
Row = dict[str, float]


@dataclass(frozen=True)
class Way(Bench):
    """The miniature, edited in one of WAYS."""

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, loaded: Checkpoint, setup: Setup, settings: Mapping[str, Any]) -> "Way":
        setup = dataclasses.replace(setup, steps=settings.get("steps", setup.steps))
        unet = loaded.unet
        if "dtype" in settings:
            unet = copy.deepcopy(unet).to(getattr(torch, settings["dtype"]))
        side = setup.size // loaded.vae.config.stride
        unet, _ = fast_cpu.prepare(unet, (side, side), setup.frames, weights=settings.get("weights", "same"))
        return cls(dataclasses.replace(loaded, unet=unet), load_eye(), setup, settings=settings)

    @property
    def model(self) -> Denoiser:
        reuse, solver = Reuse.of(self.settings.get("reuse", 1)), self.settings.get("solver", Settings.solver)
        return Denoiser(self.checkpoint.unet, self.schedule, ORDER, reuse, solver=solver)

    def guidance(self, scale: float | None = None) -> Guidance:
        return dataclasses.replace(
            super().guidance(scale), window=self.settings.get("guidance_window", Guidance.window)
        )


def measured(way: Way, i: int) -> Row:
    """The i-th held-out clip inverted and edited three times: means over the edits, seconds of this process."""
    start, story = time.process_time(), held_out_story(i)
    clip = HeldOutClip.of(way, story)
    outs = {}
    for kind, wished in targets(story, i).items():
        outs[kind] = way.edit(clip.source, clip.prompt, caption(wished), dict(PRESETS[kind])), wished
    seconds, found = time.process_time() - start, []
    for kind, (out, wished) in outs.items():
        values = {f.name.partition(": ")[2]: float(f.value) for f in judge(way, kind, out, wished, clip.drawn)}
        found.append(values | {"right": values[ASKED[kind]]})
    means = {name: float(np.mean([values[name] for values in found])) for name in FIGURES if name != "seconds"}
    return means | {"seconds": seconds}


def told(way: Way, name: str, i: int) -> dict[str, Row]:
    """A cell, and a line about it."""
    figures = measured(way, i)
    print(f"clip {i}, {name}: {figures['seconds']:.1f} s", flush=True)
    return {"figures": figures}


def rows_of(
    loaded: Checkpoint, setup: Setup, names: Sequence[str], clips: range, folder: Path
) -> dict[str, dict[int, Row]]:
    """Way -> clip -> its figures: read where they were measured before, by the same key, else measured and written."""
    rows: dict[str, dict[int, Row]] = {name: {} for name in names}
    ways, key = {}, None
    for i in clips:
        for name in names:
            if name not in ways:
                ways[name] = Way.of(loaded, setup, WAYS[name])
                key = key or ways[name].key()
            # seconds are this machine's
            own = digest(key, dict(WAYS[name]), ways[name].setup, PRESETS, machine(CPU), torch.__version__)
            file = folder / f"{name.replace(' ', '-').replace(':', '-')}-{i:03d}.json"
            rows[name][i] = cell(file, own, CELL, partial(told, ways[name], name, i))["figures"]
    return rows


def table(rows: Mapping[str, Mapping[int, Row]]) -> str:
    """Markdown: each way's means, and its paired difference to exact ± half the 95% interval."""
    lines = ["| way | clips | of exact's seconds | " + " | ".join(list(FIGURES.values())[:-1]) + " |", "|---" * 6 + "|"]
    for name, of in rows.items():
        both = [i for i in of if i in rows[EXACT]]
        share = float(np.median([of[i]["seconds"] / rows[EXACT][i]["seconds"] for i in both]))
        cells = []
        for figure in list(FIGURES)[:-1]:
            mean = float(np.mean([of[i][figure] for i in both]))
            found = interval([of[i][figure] - rows[EXACT][i][figure] for i in both])
            half = f" ± {found['half']:.2f}" if "half" in found else ""
            cells.append(f"{mean:.2f}" + ("" if name == EXACT else f" ({found['mean']:+.2f}{half})"))
        lines.append(f"| {name} | {len(both)} | {share:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def drawing(rows: Mapping[str, Mapping[int, Row]], size: tuple[int, int] = (900, 560)) -> Image.Image:
    """The share of right edits over seconds, one point a way: higher and further left is better."""
    picture = Image.new("RGB", size, "white")
    draw, margin = ImageDraw.Draw(picture), 70
    points = {
        name: (
            float(np.mean([r["seconds"] for r in of.values()])),
            float(np.mean([r["right"] for r in of.values()])),
        )
        for name, of in rows.items()
    }
    right = 1.1 * max(x for x, _ in points.values())
    low, high = min(y for _, y in points.values()) - 0.05, max(y for _, y in points.values()) + 0.05

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            margin + x / right * (size[0] - 2 * margin),
            size[1] - margin - (y - low) / (high - low) * (size[1] - 2 * margin),
        )

    draw.line([place(0, high), place(0, low), place(right, low)], fill="black", width=2)
    for k in range(6):
        x, y = right * k / 5, low + (high - low) * k / 5
        draw.text((place(x, low)[0] - 12, size[1] - margin + 8), f"{x:.0f}", fill="black")
        draw.text((margin - 40, place(0, y)[1] - 6), f"{y:.2f}", fill="black")
    draw.text((size[0] // 2 - 90, size[1] - 30), "seconds of a core, a clip and three edits", fill="black")
    draw.text((margin, 30), "share of edits with the colour, the kind or the style that was asked for", fill="black")
    for name, point in points.items():
        x, y = place(*point)
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill="crimson" if name == "fast" else "steelblue")
        draw.text((x + 8, y - 12), name, fill="black")
    return picture


def write_pareto(rows: Mapping[str, Mapping[int, Row]], folder: Path) -> None:
    with atomic(folder / "pareto.png") as part:
        drawing(rows).save(part, format="PNG")
