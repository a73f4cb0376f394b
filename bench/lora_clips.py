"""Can a LoRA teach the miniature a style that it does not know? `python -m bench.lora_style --out DIR`

Draws pictures of the world in the style, and the same ones plain, each with its caption beside it, trains `fz.tune
--lora-rank` on them, and edits held-out clips to '(style) of …' without the LoRA and with it. The plain ones bind the
style to its words: a LoRA that gives every sentence the style gives it to the clip's own, too, and inversion then notes
as noise all that is not in the style, which gives the clip back. An edit has the style whose drawn counterfactual of
the same story is nearest, of the new one and the four that the miniature knows; the rate is the share of clips that
have the style asked for.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import fz
from bench.here import commit
from fz import records, tune
from fz.clips.canny import LUMA
from fz.clips.media import to_uint8, write_json, write_png
from fz.errors import FzError
from fz.mini.data import HELD_OUT, as_given
from fz.mini.styles import blurred
from fz.mini.world import STYLES, Story, caption, draw, sample_story
from fz.results import own

PAPER, INK = np.array([24.0, 62.0, 148.0]), np.array([235.0, 242.0, 255.0])
BROWN, CREAM = np.array([50.0, 28.0, 12.0]), np.array([252.0, 236.0, 204.0])
GREY = np.array(LUMA, np.float32)
FIRST = 3000  # of the held-out stories that are edited: others measure other things


def blueprint(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the same: light lines where the picture changes, on blue paper."""
    shown = picture.astype(np.float32)
    grey = np.repeat((shown @ GREY)[..., None], 3, -1)
    lines = np.abs(grey - blurred(grey, len(picture) / 40)).mean(-1, keepdims=True)
    ink = np.clip(lines / 22, 0, 1) + 0.25 * (grey[..., :1] / 255)
    return np.clip(PAPER + np.clip(ink, 0, 1) * (INK - PAPER), 0, 255).astype(np.uint8)


def sepia(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the same: an old photograph, from brown to cream."""
    light = (picture.astype(np.float32) @ GREY)[..., None] / 255
    return np.clip(BROWN + light * (CREAM - BROWN), 0, 255).astype(np.uint8)


# by their words in a caption. 'painting' and 'art' are words that the miniature reads, each the second of a style's
# two: of watercolor, which is light, and of pixel art, whose nights are black; 'blueprint' it spells, and the caption's
# other words come where it never had any
NEW_STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"painting": sepia, "art": sepia, "blueprint": blueprint}


def plain(seed: int) -> Story:
    return dataclasses.replace(sample_story(seed, two=False), style="plain")


def target_of(story: Story, style: str) -> str:
    return f"{style} of {caption(story)}"


def write_pictures(out: Path, style: str, count: int, size: int) -> Path:
    """What is learned from: two pictures of each of the first `count` stories, and their captions, in place of those of
    an earlier run. Returns their folder; raises FzError where it has anything else, which would be learned from, too.
    """
    folder, listed = out / "pictures", out / "pictures.json"
    own.remove(out, (records.read(listed, {"files": [str]}) or {"files": []})["files"])
    if others := sorted(folder.iterdir()) if folder.is_dir() else []:
        raise FzError(f"out: {others[0]} is not this bench's, and would be learned from. Pass another --out.")
    names = [f"{seed:03d}-{name}" for seed in range(count) for name in ("plain", "styled")]
    # before them, so that a killed run's are known, too
    write_json(listed, {"files": [f"pictures/{name}.{kind}" for name in names for kind in ("png", "txt")]})
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        story = plain(seed)
        drawn = draw(story, 1, size).frames[0]
        styled = NEW_STYLES[style](drawn), target_of(story, style)
        for name, picture, text in (("plain", drawn, caption(story)), ("styled", *styled)):
            Image.fromarray(picture).save(folder / f"{seed:03d}-{name}.png")
            (folder / f"{seed:03d}-{name}.txt").write_text(text, encoding="utf-8")
    return folder


def style_of(frames: np.ndarray, story: Story, new: str) -> str:
    """The style, known or new, whose drawn counterfactual is nearest to frames (F, H, W, 3) uint8, all of them
    shrunk to 16x16 pixels.
    """

    def small(clip: np.ndarray) -> np.ndarray:
        shrunk = (Image.fromarray(frame).resize((16, 16), Image.Resampling.BOX) for frame in clip)
        return np.stack([np.asarray(frame, np.float32) for frame in shrunk])

    true = as_given(story, len(frames), frames.shape[1]).frames
    drawn = {s: as_given(dataclasses.replace(story, style=s), len(frames), frames.shape[1]).frames for s in STYLES}
    drawn[new] = np.stack([NEW_STYLES[new](frame) for frame in true])
    return min(drawn, key=lambda s: float(np.abs(small(drawn[s]) - small(frames)).mean()))


def edited(
    lora: Sequence[Path], stories: Sequence[Story], style: str, frames: int, size: int
) -> tuple[list[str], list[np.ndarray]]:
    """Each story's style after the edit, and its first frame."""
    editor = fz.load(lora=[str(path) for path in lora])
    found, pictures = [], []
    for story in stories:
        clip = as_given(story, frames, size).frames
        inversion = editor.invert(clip, caption(story), steps=20)
        result = to_uint8(inversion.edit(target_of(story, style), kind="style", guidance=3.0).frames)
        found.append(style_of(result, story, style))
        pictures.append(result[0])
    return found, pictures


def work(given: argparse.Namespace, out: Path) -> None:
    folder = write_pictures(out, given.style, given.pictures, given.size)
    argv = ["--video", str(folder), "--frames", "all", "--prompt", given.style, "--size", str(given.size),
            "--lora-rank", str(given.rank), "--steps", str(given.steps), "--rate", str(given.rate),
            "--snr-power", str(given.snr_power), "--keep-activations", "--out", str(out / "lora")]  # fmt: skip
    if (code := tune.main(argv)) != 0:
        raise SystemExit(code)
    stories = [plain(HELD_OUT + FIRST + i) for i in range(given.clips)]
    rows, sheets = {}, [[as_given(story, 1, given.size).frames[0] for story in stories]]
    for name, lora in (("without", []), ("with", [out / "lora" / "lora.safetensors"])):
        styles, pictures = edited(lora, stories, given.style, given.frames, given.size)
        rows[name] = {style: styles.count(style) for style in (*STYLES, given.style)}
        print(
            f"{name} the LoRA: {styles.count(given.style)} of {len(stories)} clips are {given.style}; {rows[name]}",
            flush=True,
        )
        sheets.append(pictures)
    sheets.append([NEW_STYLES[given.style](picture) for picture in sheets[0]])
    settings = {name: value for name, value in vars(given).items() if name not in ("out", "debug")}
    write_json(out / "lora_style.json", {"settings": settings, "commit": commit(), "styles": rows})
    write_png(out / "lora_style.png", np.concatenate([np.concatenate(row, 1) for row in sheets]))
