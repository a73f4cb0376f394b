"""What is on a run's page? One file, report.html, of a run's folder, to be looked at anywhere without anything else.

It gathers what `fz.results.folder` wrote: clips, attention and masks (the tiles of their contact sheets), settings, and
metrics measured now. How the page looks and works is `fz.results.page`'s question.
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fz.clips.images import opened_image
from fz.clips.media import atomic
from fz.errors import FzError
from fz.metrics.measure import TITLES, explained, shown
from fz.results.beside import REPORT, beside
from fz.results.folder import read_run, slug
from fz.results.measured import measure_folder, picture, read_frames
from fz.results.page import PAGE
from fz.settings.command import command
from fz.words import split

LARGEST = 5_000_000  # bytes
# (longest side, quality) of the clips' frames, tried in turn until the page is small enough
FRAMES = ((768, 90), (512, 85), (384, 80), (256, 75), (192, 60), (128, 50))
TILE, GAP = 192, 4  # `contact_sheet`'s
PER_STRIP = 64  # tiles in one picture: WebP ends at 16383 pixels
MOST_STEPS = 25  # of an edit's masks
MOST_MASKS = 100  # of all edits'


def write_report(folder: str | Path, clip: Any = None) -> Path:
    """Write FOLDER/report.html, return its path. clip: a `fz.model.clip_vision.ClipModel` for its metrics.

    Raises FzError unless the run is finished, and for a file of the user's of that name.
    """
    folder = Path(folder)
    check_report(folder)
    rows = measure_folder(folder, clip)
    run = read_run(folder)
    content = gather(folder, run)
    clips = [read_frames(folder / "frames" / name) for name in ("source", *(f"edit-{i}" for i in range(len(rows))))]
    for side, quality in FRAMES:
        for about, frames in zip(content["clips"], clips, strict=True):
            about["frames"] = [data_uri(shrunk(frame, side), "JPEG", quality) for frame in frames]
        page = fill_page(content, run, rows, folder)
        if len(page) <= LARGEST:
            break
    with beside(folder, REPORT), atomic(folder / REPORT) as part:
        part.write_bytes(page)
    return folder / REPORT


def check_report(folder: Path) -> None:
    """Raise FzError where FOLDER/report.html is there and is no report."""
    file = folder / REPORT
    if not file.exists() or REPORT in (read_run(folder) or {"files": []})["files"]:
        return
    with open(file, "rb") as opened:
        if b'<canvas id="compare"' in opened.read(20_000):
            return
    raise FzError(f"report: {file} is there, and is no report of fz. Move it first.")


def gather(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """The page's data but for the clips' frames."""
    settings = run["settings"]
    source_words = split(settings["source"])
    words = []
    for file in sorted((folder / "attention").glob("[0-9][0-9]-*.png")):
        index, name = int(file.name[:2]), file.stem[3:]
        known = index < len(source_words) and slug(source_words[index], 24) == name
        words.append({"word": source_words[index] if known else name, **strips(file, run)})
    masks = []
    for i in range(len(settings["edits"])):
        files = sorted((folder / "masks").glob(f"edit-{i}-step-*.png"))
        # evenly, the first and the last among them
        most = min(len(files), MOST_STEPS, max(2, MOST_MASKS // len(settings["edits"])))
        chosen = sorted({round(k) for k in np.linspace(0, len(files) - 1, most)})
        masks += [
            {"edit": i, "step": int(re.findall(r"\d+", files[k].stem)[-1]), **strips(files[k], run)} for k in chosen
        ]
    clips = [{"label": label} for label in (settings["source"], *labels(settings["edits"]))]
    fps = run.get("fps") or 8
    return {
        "clips": clips, "words": words, "masks": masks, "fps": min(30, max(1, fps)), "gap": GAP, "per_strip": PER_STRIP,
        "first_word": first_word(source_words, settings["edits"], [w["word"] for w in words]),
    }  # fmt: skip


def labels(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each edit's target; with the settings that differ, where several have the same target, as in a sweep."""

    def brief(value: Any) -> str:
        # a window from the first step is known by its end
        windowed = isinstance(value, list) and len(value) == 2 and value[0] == 0
        return "none" if value is None else json.dumps(value[1] if windowed else value, ensure_ascii=False)

    out = []
    for edit in edits:
        alike = [other for other in edits if other["target"] == edit["target"]]
        differing = [name for name, value in edit.items() if any(other.get(name) != value for other in alike)]
        out.append(", ".join([edit["target"], *(f"{name} {brief(edit[name])}" for name in differing)]))
    return out


def first_word(source: Sequence[str], edits: Sequence[Mapping[str, Any]], words: Sequence[str]) -> int:
    """The place of the word to show first: one that an edit changes, else the last."""
    changed = [w for w in source if any(w not in split(edit["target"]) for edit in edits)]
    return next((i for i, w in enumerate(words) if w in changed), max(0, len(words) - 1))


def strips(sheet: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """A contact sheet's one row of tiles as pictures of at most PER_STRIP tiles; the heading is cut off."""
    pixels, count = picture(sheet), max(1, len(run.get("frames") or [0]))
    width = (pixels.shape[1] + GAP) // count - GAP
    # the clip's shape says how high a tile is; the row stands at the bottom
    with opened_image(sheet.parent.parent / "frames" / "source" / "00000.png") as frame:
        shrink = min(1, TILE / max(frame.size))
        height = max(1, round(frame.height * shrink))
    row, step = pixels[-height:].copy(), width + GAP
    # the gap would bleed into the tiles: lossy pictures halve their colours' resolution
    for i in range(1, count):
        row[:, i * step - GAP : i * step] = row[:, i * step - GAP - 1 : i * step - GAP]
    cut = [row[:, i * step : min(i + PER_STRIP, count) * step - GAP] for i in range(0, count, PER_STRIP)]
    return {
        "width": width,
        "strips": [data_uri(Image.fromarray(np.ascontiguousarray(part)), "WEBP", 70) for part in cut],
    }


def shrunk(frame: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image, form: str, quality: int) -> str:
    out = io.BytesIO()
    image.save(out, form, quality=quality)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def fill_page(
    content: Mapping[str, Any], run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path
) -> bytes:
    settings = run["settings"]
    lenient = any(edit.get("lenient") for edit in settings["edits"])
    notes = [
        *run.get("notes", ()),
        *(["from a released config: run that for the same leniency with words"] if lenient else []),
    ]
    parts = {
        "TITLE": html.escape("; ".join(dict.fromkeys(edit["target"] for edit in settings["edits"]))),
        "SOURCE": html.escape(settings["source"]),
        "METRICS": metrics_table(rows, labels(settings["edits"])),
        "COMMAND": html.escape(command(settings, str(folder))),
        "NOTES": "".join(f"<p>{html.escape(str(note))}</p>" for note in notes),
        "STAGES": stages_table(run.get("stages", {})),
        "SETTINGS": html.escape(json.dumps(settings, indent=1, ensure_ascii=False)),
        "VERSIONS": html.escape(json.dumps(run.get("versions", {}), indent=1)),
        # no text can end the script element
        "DATA": json.dumps(content).replace("<", "\\u003c"),
    }
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], PAGE).encode()


def metrics_table(rows: Sequence[Mapping[str, Any]], called: Sequence[str]) -> str:
    names = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    head = "".join(f'<th scope="col">{html.escape(TITLES[name])}</th>' for name in names)
    lines = [
        f'<th scope="row">{html.escape(label)}</th>'
        + "".join(f"<td>{shown(name, row.get(name))}</td>" for name in names)
        for label, row in zip(called, rows, strict=True)
    ]
    how = "; ".join(
        sorted({f"motion {r['flow']}, masks {r['masks'] or 'none'}, CLIP {r['clip'] or 'none'}" for r in rows})
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    meanings = f'<p class="soft">{"<br>".join(html.escape(line) for line in explained(rows))}</p>'
    return (
        f'<table><tr><th scope="col">edit</th>{head}</tr>{body}</table>{meanings}<p class="soft">{html.escape(how)}</p>'
    )


def stages_table(stages: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th><td>{s.get("seconds", 0):.1f} s</td>'
        f"<td>{(s.get('peak_memory_bytes') or 0) / 1e9:.2f} GB</td></tr>"
        for name, s in stages.items()
    ]
    return (
        '<table><tr><th scope="col">stage</th><th scope="col">time</th><th scope="col">peak '
        f"memory</th></tr>{''.join(lines)}</table>"
    )
