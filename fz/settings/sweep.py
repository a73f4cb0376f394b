"""`python -m fz.run FLAGS... --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3`: many settings of an edit from one
inversion, one sheet.

A sweep is a run with an edit for each combination, so everything of `fz.run` holds: cache, resuming, folder. Beside the
run's files there are then sweep.png (a row each: what was set, its metrics, its frames), sweep.json and sweep.csv.
`python -m fz.settings.sweep` is the same command.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fz.clips.media import atomic, contact_sheet, to_uint8, write_png
from fz.errors import FzError, suggest
from fz.evaluate import TITLES, as_csv, measure, shown
from fz.results.folder import default_path
from fz.settings.config import EditSettings, Settings

# settings of an edit that are a number, and the released code's names of them
NAMES = {name: name for name in ("self_replace", "cross_replace", "threshold", "blend_latents")}
NAMES |= {"blend_th": "threshold", "self_replace_steps": "self_replace", "cross_replace_steps": "cross_replace"}
MOST = 100
# what a row of the sheet says
LABELLED = ("tem_con", "frame_acc", "text_score", "warp_error", "psnr_background")

Variant = tuple[tuple[str, float | None], ...]  # ('self_replace', 0.2), ('reweight.blue', 2.0) …


def read_sweeps(texts: Sequence[str]) -> list[Variant]:
    """All combinations of 'name=0.2:0.9:0.1' (both ends) and 'name=0.2,0.3,none'. Names: NAMES, or reweight.WORD."""
    axes: dict[str, list[float | None]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.replace("-", "_") if not name.startswith("reweight.") else name
        if not name.startswith("reweight."):
            if name not in NAMES:
                choices = (*NAMES, "reweight.WORD")
                raise FzError(
                    f"sweep: unknown setting {name!r}, expected one of {', '.join(choices)}.{suggest(name, choices)}"
                )
            name = NAMES[name]
        if name in axes:
            raise FzError(f"sweep: {name} is given twice. Put its values in one list, as {name}=0.2,0.4.")
        axes[name] = read_values(text, values)
    if not axes:
        raise FzError("sweep: got nothing to sweep, expected as --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3.")
    count = math.prod(len(values) for values in axes.values())
    if count > MOST:
        shown = count if count < 10**9 else "more than 10^9"
        raise FzError(f"sweep: {shown} combinations, expected at most {MOST}. Take fewer values.")
    return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def read_values(text: str, values: str) -> list[float | None]:
    parts = values.split(":") if ":" in values else values.split(",")
    try:
        numbers = [None if part.strip() == "none" else float(part) for part in parts]
        if any(n is not None and not abs(n) < 1e6 for n in numbers):
            raise ValueError
        if ":" not in values:
            return numbers
        low, high, step = numbers
        if not (step > 0 and low <= high):
            raise ValueError
    except (ValueError, TypeError):
        raise FzError(
            f"sweep: got {text!r}, expected NAME=FROM:TO:STEP or NAME=A,B,C, as threshold=0.2,0.3,none."
        ) from None
    count = int((high - low) / step + 1e-9) + 1
    if count > MOST:
        raise FzError(f"sweep: {text!r} has {count} values, expected at most {MOST}. Take a larger step.")
    # 0.30000000000000004 is 0.3
    return [round(low + i * step, 9) for i in range(count)]


def expand(settings: Settings, variants: Sequence[Variant]) -> Settings:
    """The settings with each of their edits once for each variant; unless told otherwise, in a folder beside the plain
    run's.
    """
    if len(settings.edits) * len(variants) > MOST:
        raise FzError(
            f"sweep: {len(settings.edits)} targets of {len(variants)} settings each, expected at most {MOST} "
            "edits in all."
        )
    edits = tuple(varied(edit, variant) for edit in settings.edits for variant in variants)
    return dataclasses.replace(settings, edits=edits, out=settings.out or f"{default_path(settings)}-sweep")


def varied(edit: EditSettings, variant: Variant) -> EditSettings:
    fields: dict[str, Any] = {}
    for name, value in variant:
        if name.startswith("reweight."):
            word = name.partition(".")[2]
            factors = fields.get("reweight", edit.reweight)
            fields["reweight"] = (*(pair for pair in factors if pair[0] != word), (word, value))
        else:
            fields[name] = value
    return dataclasses.replace(edit, **fields)


def write_sweep(result: Any, variants: Sequence[Variant], clip: Any = None) -> list[dict[str, Any]]:
    """sweep.png, .json and .csv into a finished sweep's folder (`fz.pipeline.Result`); returns a row an edit. clip:
    `fz.model.clip_vision.Clip`.
    """
    source, out = to_uint8(result.video.frames), Path(result.out)
    rows, clips, labels = [], [source], [f"source: {result.settings.source}"]
    for i, edited in enumerate(result.edits):
        variant, frames = variants[i % len(variants)], to_uint8(edited.frames)
        numbers = measure(source, frames, (result.settings.source, edited.settings.target), clip)
        label = ", ".join(f"{name} {'none' if value is None else f'{value:g}'}" for name, value in variant)
        rows.append({"edit": i, "label": label, "target": edited.settings.target, **dict(variant), **numbers})
        said = [f"{TITLES[name]} {shown(name, numbers[name])}" for name in LABELLED if numbers[name] is not None]
        many = len({e.target for e in result.settings.edits}) > 1
        labels.append("; ".join([label, *said, *([edited.settings.target] if many else [])]))
        clips.append(frames)
    write_png(out / "sweep.png", contact_sheet(clips, labels, tile=160))
    for name, text in (("sweep.json", json.dumps(rows, indent=1) + "\n"), ("sweep.csv", as_csv(rows))):
        with atomic(out / name) as part:
            part.write_text(text, encoding="utf-8")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """`fz.run`, which then has to be told what to sweep."""
    from fz import run, shell

    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" not in argv and not any(arg.partition("=")[0] == "--sweep" for arg in argv):
        shell.say_error("sweep: got no --sweep, expected as --sweep self_replace=0.2:0.9:0.1 threshold=0.2,0.3.")
        return 2
    return run.main(argv)


if __name__ == "__main__":
    sys.exit(main())
