"""Which numbers does an edited clip get, and how are they shown? What each means is `fz.metrics.numbers`' question.

A row is a mapping from a metric's name to its value, None where it cannot be computed. Which files the clips come from
is `fz.results.measured`'s question.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fz.errors import FzError
from fz.metrics import numbers

TITLES = {
    "tem_con": "Tem-Con",
    "frame_acc": "Frame-Acc",
    "text_score": "text score",
    "seen_kind": "kind seen",
    "seen_colour": "colour seen",
    "seen_scene": "scene seen",
    "seen_style": "style seen",
    "warp_error": "warp err x1000",
    "psnr_background": "bg PSNR",
    "ssim_background": "bg SSIM",
    "psnr_truth": "truth PSNR",
    "psnr_truth_masked": "in mask",
    "ssim_truth": "truth SSIM",
    "patch_distance": "patch dist",
    "psnr_reconstruction": "recon PSNR",
}
# what each number says, and which way is better
MEANINGS = {
    "tem_con": "likeness of neighbouring frames to CLIP; higher is smoother",
    "frame_acc": "share of frames nearer, to CLIP, to the target's sentence than to the source's; higher is better",
    "text_score": "likeness of frames and target's sentence to CLIP; higher is better",
    "seen_kind": "share of frames that show the target's things, to the miniature's judge; higher is better",
    "seen_colour": "the same of their colours",
    "seen_scene": "the same of the scene",
    "seen_style": "the same of the style",
    "warp_error": "squared difference, in thousandths, of frames along the source's motion; lower is steadier",
    "psnr_background": "likeness to the source outside the mask, in dB; higher keeps more",
    "ssim_background": "the same by structure, 1 is equal",
    "psnr_truth": "likeness to the true edit, in dB; higher is better",
    "psnr_truth_masked": "the same within the mask",
    "ssim_truth": "likeness to the true edit by structure, 1 is equal",
    "patch_distance": "distance to the true edit, or else to the source, by CLIP's patches; lower is nearer",
    "psnr_reconstruction": "likeness to the source of an edit to its own sentence, in dB; higher is better",
}
# the warp error is shown in thousandths
SHOWN = {
    "warp_error": lambda v: f"{1000 * v:.3f}",
    **dict.fromkeys(("tem_con", "frame_acc", "text_score"), lambda v: f"{v:.4f}"),
}


@dataclass(frozen=True)
class Truth:
    """What is known of a clip from elsewhere. frames: what the edit should be; masks (F, H, W) bool: what may change;
    flow: source's.
    """

    frames: np.ndarray | None = None
    masks: np.ndarray | None = None
    flow: np.ndarray | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise FzError unless it is of a clip of that shape, (F, H, W, 3)."""
        for name, given in (("truth", self.frames), ("masks", self.masks)):
            wanted = shape if name == "truth" else shape[:3]
            if given is not None and given.shape != wanted:
                raise FzError(f"{name}: got {given.shape}, expected one of the clip's size for each frame, {wanted}.")


def measure(
    source: np.ndarray, edited: np.ndarray, prompts: tuple[str, str], clip: Any = None, truth: Truth | None = None
) -> dict[str, Any]:
    """All metrics of one edited clip that there are, by name; None for those that cannot be computed, and for what the
    miniature's judge sees (`fz.mini.judged`).

    source, edited: (F, H, W, 3) uint8; prompts: the source's and the target's. clip: a
    `fz.model.clip_vision.ClipModel`. An edit whose target is the source prompt is a reconstruction.
    """
    truth = truth or Truth()
    numbers.same_shape(source, edited)
    truth.check(source.shape)
    row: dict[str, Any] = dict.fromkeys(TITLES)
    if clip is not None:
        images, texts = clip.images(edited), clip.texts(prompts)
        row |= {
            "tem_con": numbers.tem_con(images),
            "frame_acc": numbers.frame_acc(images, texts[0], texts[1]) if prompts[0] != prompts[1] else None,
            "text_score": numbers.text_score(images, texts[1]),
            "patch_distance": numbers.clip_patch_distance(
                clip.patches(edited), clip.patches(source if truth.frames is None else truth.frames)
            ),
        }
    flow, seen = (truth.flow, None) if truth.flow is not None else numbers.estimate_flow(source)
    row["warp_error"] = numbers.warp_error(edited, flow, seen)
    if truth.masks is not None:
        row |= {
            "psnr_background": numbers.psnr(edited, source, ~truth.masks),
            "ssim_background": numbers.ssim(edited, source, ~truth.masks),
        }
    if truth.frames is not None:
        row |= {"psnr_truth": numbers.psnr(edited, truth.frames), "ssim_truth": numbers.ssim(edited, truth.frames)}
        row["psnr_truth_masked"] = numbers.psnr(edited, truth.frames, truth.masks) if truth.masks is not None else None
    if prompts[0] == prompts[1]:
        row["psnr_reconstruction"] = numbers.psnr(edited, source)
    return row


def table(rows: Sequence[Mapping[str, Any]], label: str = "target") -> str:
    """Aligned text: a line for each row, with the metrics that any row has."""
    names = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    cells = [[label, *(TITLES[name] for name in names)]]
    for row in rows:
        cells.append([str(row[label]), *(shown(name, row.get(name)) for name in names)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells)


def explained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each metric that any row has: what it says, and which way is better."""
    return [f"{TITLES[name]}: {MEANINGS[name]}" for name in TITLES if any(row.get(name) is not None for row in rows)]


def shown(name: str, value: float | None) -> str:
    return "-" if value is None else SHOWN.get(name, lambda v: f"{v:.3f}")(value)


def plain_cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, behind an apostrophe, which it takes for 'this is text'."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()
