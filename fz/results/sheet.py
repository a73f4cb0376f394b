"""What does a sweep leave beside its run's files? sweep.png (a row for each edit: what was set, its metrics, its
frames), sweep.json and sweep.csv.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fz.clips.media import contact_sheet, to_uint8, write_png
from fz.metrics.measure import TITLES, Truth, as_csv, measure, shown
from fz.model.clip_vision import ClipModel
from fz.results.beside import SWEEP, beside, check_beside
from fz.results.measured import in_pixels, seen
from fz.results.result import Edited, Result
from fz.settings.sweep import Variant
from fz.whole import write_text

# what a row of the sheet says
LABELLED = ("tem_con", "frame_acc", "text_score", "warp_error", "psnr_background")


def write_sweep(result: Result, variants: Sequence[Variant], clip: ClipModel | None = None) -> list[dict[str, Any]]:
    """sweep.png, .json and .csv into a finished sweep's folder (`fz.pipeline.Result`); returns a row an edit. clip:
    `fz.model.clip_vision.ClipModel`. Raises FzError for a file of the user's of such a name.
    """
    check_beside(Path(result.out), *SWEEP)
    source, out = to_uint8(result.video.frames), Path(result.out)
    rows, clips, labels = [], [source], [f"source: {result.settings.source}"]
    for i, edited in enumerate(result.edits):
        variant, frames = variants[i % len(variants)], to_uint8(edited.frames)
        masks = region(edited, frames.shape[:3])
        numbers = measure(source, frames, (result.settings.source, edited.target), clip, Truth(masks=masks))
        numbers |= seen(frames, edited.target) if result.settings.checkpoint is None else {}
        label = ", ".join(f"{name} {'none' if value is None else f'{value:g}'}" for name, value in variant)
        rows.append({"edit": i, "label": label, "target": edited.target, **dict(variant), **numbers})
        said = [f"{TITLES[name]} {shown(name, numbers[name])}" for name in LABELLED if numbers[name] is not None]
        many = len({e.target for e in result.settings.edits}) > 1
        labels.append("; ".join([label, *said, *([edited.target] if many else [])]))
        clips.append(frames)
    with beside(out, *SWEEP):
        write_png(out / "sweep.png", contact_sheet(clips, labels, tile=160))
        for name, text in (("sweep.json", json.dumps(rows, indent=1) + "\n"), ("sweep.csv", as_csv(rows))):
            write_text(out / name, text)
    return rows


def region(edited: Edited, shape: tuple[int, ...]) -> np.ndarray | None:
    """The union over steps of the edit's largest blend masks, (F, H, W) bool; None of an edit without any."""
    found: dict[tuple[int, ...], np.ndarray] = {}
    for step in edited.masks.values():
        for size, mask in step.items():
            found[size] = found.get(size, False) | mask.cpu().numpy()
    return in_pixels(found, shape)
