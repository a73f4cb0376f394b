"""Makes the README's gallery: `python -m bench.gallery` edits six drawn clips with the miniature; gifs of source, edit
and mask.

Clips are drawn for it, of things that the miniature draws well: how often it does is what `fz.mini.evaluate` measures.
Prompts are captions with a few words changed, settings the presets'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fz import mini
from fz.attention import MAP_STRIDE
from fz.clips.media import heat, side_by_side, to_uint8, write_gif, write_pngs
from fz.masks import blend_mask
from fz.mini.export import EXAMPLE
from fz.mini.world import Story, Thing, caption, draw
from fz.pipeline import run
from fz.prompts.plan import weights
from fz.prompts.text import TextEncoder
from fz.settings.config import PRESETS, build
from fz.shell import Parser, answered, leave
from fz.weights.load import load_tokenizer

SHOWN = 192  # side of a picture in the gallery


@dataclass(frozen=True)
class Entry:
    """One edit. change: words of the source's caption and what stands in their place ('' before: put in front); word:
    shown as mask.
    """

    name: str
    story: Story
    change: tuple[str, str]
    preset: str
    word: str
    frames: int = 8
    guidance: float = mini.DEFAULTS["guidance"]

    @property
    def target(self) -> str:
        old, new = self.change
        source = caption(self.story)
        return source.replace(old, new) if old else f"{new} {source}"


def moving(kind: str, colour: str, y: float = 0.6, start: float = 0.3, end: float = 0.68, size: float = 0.42) -> Thing:
    return Thing(kind, colour, (start, y), (end, y + 0.02), size, 0.015, 0.1)


ENTRIES = (
    Entry("attribute", EXAMPLE, ("red", "blue"), "attribute", "car"),
    Entry("shape", Story((moving("box", "orange"),), "grass", seed=12, drift=0.02), ("box", "house"), "shape", "box"),
    Entry(
        "style",
        Story((moving("boat", "yellow"),), "water", seed=13, drift=-0.02),
        ("", "watercolor painting of"),
        "style",
        "boat",
    ),
    Entry(
        "background",
        Story((moving("house", "pink", start=0.4, end=0.6),), "grass", seed=14),
        ("grass", "snow"),
        "attribute",
        "house",
    ),
    Entry(
        "two-objects",
        Story(
            (moving("ball", "blue", 0.6, 0.27, 0.33, 0.36), moving("box", "red", 0.6, 0.76, 0.73, 0.36)),
            "grass",
            seed=15,
        ),
        ("blue", "purple"),
        "attribute",
        "ball",
        guidance=2.0,
    ),
    Entry(
        "one-image",
        Story((moving("house", "purple", start=0.5, end=0.52),), "snow", seed=16),
        ("purple", "green"),
        "attribute",
        "house",
        frames=1,
    ),
)


def enlarged(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)) for f in frames])


def make(entry: Entry, out: Path, work: Path, steps: int) -> Path:
    """Edit one entry and write its gif."""
    write_pngs(work / entry.name, draw(entry.story, entry.frames).frames)
    settings = {
        "clip.path": str(work / entry.name),
        "clip.frames": entry.frames,
        "source": caption(entry.story),
        "edits.0.target": entry.target,
        "steps": steps,
        "guidance": entry.guidance,
        "out": str(work / f"{entry.name}-run"),
        "overwrite": True,
        "cache": "none",
    }
    preset = {f"edits.*.{key}": value for key, value in PRESETS[entry.preset].items()}
    result = run(build(mini.DEFAULTS, preset, settings))
    source = to_uint8(result.video.frames)
    tokens = TextEncoder(load_tokenizer(Path(mini.checkpoint()) / "tokenizer", 2**31), None).tokens(
        caption(entry.story)
    )
    maps = torch.stack([result.source.maps[t] for t in result.schedule.timesteps]).mean(0)
    side = next(iter(result.source.latents.values())).shape[-1]
    mask = blend_mask(maps, weights(tokens, [entry.word]), 0.3, (side // MAP_STRIDE,) * 2, (side, side))
    shown = [enlarged(source), enlarged(to_uint8(result.edits[0].frames)), enlarged(heat(mask.float(), peak=1.0))]
    path = out / f"{entry.name}.gif"
    write_gif(
        path, side_by_side(shown, [caption(entry.story), entry.target, f"mask of '{entry.word}'"]), result.video.fps
    )
    return path


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m bench.gallery", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--work", type=Path, default=Path("results/gallery"), help="clips and runs")
    parser.add_argument("--steps", type=int, default=mini.DEFAULTS["steps"])
    parser.add_argument("--only", nargs="*", default=[entry.name for entry in ENTRIES])
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for entry in ENTRIES:
        if entry.name in arguments.only:
            print(make(entry, arguments.out, arguments.work, arguments.steps), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv))


if __name__ == "__main__":
    leave(main())
