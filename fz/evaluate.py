"""The command line, `python -m fz.evaluate RESULTS... --clip PATH`: measure folders that `fz.run` wrote; a table, JSON
and CSV.

What a number means is `fz.metrics.numbers`' question. Without --clip, runs of the miniature are measured by the
miniature's CLIP, others by what pixels tell. Without --truth, --masks or --flow the run's own blend masks stand for the
edited region and motion is estimated on the source clip; the rows say which.
"""

import argparse
import csv
import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fz.errors import FzError
from fz.metrics import numbers
from fz.results.folder import RUN, completed, read_run
from fz.settings.place import expanded
from fz.shell import Parser, answered

TITLES = {
    "tem_con": "Tem-Con",
    "frame_acc": "Frame-Acc",
    "text_score": "text score",
    "warp_error": "warp err x1000",
    "psnr_background": "bg PSNR",
    "ssim_background": "bg SSIM",
    "psnr_truth": "truth PSNR",
    "psnr_truth_masked": "in mask",
    "ssim_truth": "truth SSIM",
    "patch_distance": "patch dist",
    "psnr_reconstruction": "recon PSNR",
}
CLIP_HELP = (
    "CLIP: a folder in transformers' layout, or a file with the original state dict; 'none'. Default: the "
    "miniature's, for its runs"
)
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


def measure(
    source: np.ndarray, edited: np.ndarray, prompts: tuple[str, str], clip: Any = None, truth: Truth | None = None
) -> dict[str, Any]:
    """All metrics of one edited clip that can be had, by name; None for those that cannot.

    source, edited: (F, H, W, 3) uint8; prompts: the source's and the target's. clip: a `fz.model.clip_vision.Clip`. An
    edit whose target is the source prompt is a reconstruction.
    """
    truth = truth or Truth()
    numbers.same_shape(source, edited)
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
        if truth.masks.shape != source.shape[:3]:
            raise FzError(
                f"masks: got {truth.masks.shape}, expected one of the clip's size for each frame, {source.shape[:3]}."
            )
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


def measure_folder(folder: Path, clip: Any = None, truth: Truth | None = None) -> list[dict[str, Any]]:
    """A row for each edit of a results folder. Raises FzError if it is none, or unfinished."""
    run = read_run(folder)
    settings = (run or {}).get("settings")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("edits"), list):
        raise FzError(f"results: {folder} has no {RUN} of a run. Expected a folder that `python -m fz.run` wrote.")
    if run.get("status") not in ("finishing", "done"):
        raise FzError(
            f"results: {folder} is of a run that has not finished. Run its command again; it goes on from its "
            "last step."
        )
    source = read_frames(folder / "frames" / "source")
    rows = []
    for i, edit in enumerate(settings["edits"]):
        edited = read_frames(folder / "frames" / f"edit-{i}")
        known = truth or Truth()
        masks, of = known.masks, "given"
        if masks is None:
            masks, of = blend_masks(folder, i, source.shape[:3]), "blend"
        row = measure(
            source, edited, (settings["source"], edit["target"]), clip, Truth(known.frames, masks, known.flow)
        )
        about = {
            "result": str(folder),
            "edit": i,
            "method": settings.get("method"),
            "source": settings["source"],
            "target": edit["target"],
        }
        how = {"clip": clip.name if clip else None, "masks": of if masks is not None else None}
        rows.append(about | row | how | {"flow": "given" if known.flow is not None else "estimated"})
    return rows


def blend_masks(folder: Path, i: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """The union over steps of edit i's largest blend masks, (F, H, W) bool, from latents.safetensors; None where a run
    left none.
    """
    from safetensors import SafetensorError, safe_open

    file, found = folder / "latents.safetensors", {}
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():
                kind, _, rest = name.partition(".")
                number, _, rest = rest.partition(".")
                if kind == "mask" and number == str(i):
                    mask = tensors.get_tensor(name).astype(bool)
                    size = mask.shape[1:]
                    found[size] = found.get(size, False) | mask
    except (SafetensorError, OSError, ValueError) as error:
        raise FzError(
            f"{file}: damaged ({str(error).splitlines()[0][:120]}). Run the edit again with --save-latents."
        ) from None
    if not found:
        return None
    union = found[max(found)]
    (_, h, w), (height, width) = union.shape, shape[1:]
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    return union[:, rows][:, :, columns]


def read_frames(folder: Path) -> np.ndarray:
    """00000.png … of a folder, (F, H, W, 3) uint8."""
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if not files:
        raise FzError(f"frames: {folder} has no png files. Expected frames named 00000.png, 00001.png, …")
    pictures = [picture(file, "RGB") for file in files]
    if len({p.shape for p in pictures}) > 1:
        raise FzError(f"frames: {folder} has pictures of several sizes. Expected one.")
    return np.stack(pictures)


def picture(file: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FzError(f"{file}: cannot be read as a picture ({str(error)[:120]}).") from None


def read_truth(frames: str | None, masks: str | None, flow: str | None) -> Truth:
    """Folders of png files, masks white where the edit should be, and a .npy of (F - 1, H, W, 2) pixels to the next
    frame.
    """
    field = None
    if flow is not None:
        try:
            field = np.load(flow, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FzError(
                f"flow: {flow} cannot be read ({str(error)[:120]}). Expected a .npy of (F - 1, H, W, 2) pixels."
            ) from None
        if not isinstance(field, np.ndarray) or field.dtype.kind not in "fiu":
            raise FzError(f"flow: {flow} holds no plain array of numbers. Expected a .npy of (F - 1, H, W, 2) pixels.")
    where = read_frames(Path(masks))[..., 0] > 127 if masks else None
    return Truth(read_frames(Path(frames)) if frames else None, where, field)


# ---- what is shown and written -----------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], label: str = "target") -> str:
    """Aligned text: a line for each row, with the metrics that any row has."""
    names = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    cells = [[label, *(TITLES[name] for name in names)]]
    for row in rows:
        cells.append([str(row[label]), *(shown(name, row.get(name)) for name in names)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells)


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise FzError where OUT.json or OUT.csv is there and is no evaluation, unless it may be replaced."""
    for file in (Path(f"{out}.json"), Path(f"{out}.csv")):
        if overwrite or not file.exists() or is_evaluation(file):
            continue
        raise FzError(f"out: {file} is there, and is no evaluation. Pass another --out, or --overwrite to replace it.")


def is_evaluation(file: Path) -> bool:
    """Is it one of the files that `write_rows` writes?"""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".csv":
            return text.startswith("result,edit,method,source,target,")
        rows = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(rows, list) and bool(rows) and all(isinstance(r, dict) and {"result", "edit"} <= r.keys() for r in rows)


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """OUT.json and OUT.csv, each whole or not at all."""
    from fz.clips.media import atomic

    for suffix, text in ((".json", json.dumps(rows, indent=1) + "\n"), (".csv", as_csv(rows))):
        with atomic(Path(f"{out}{suffix}")) as part:
            part.write_text(text, encoding="utf-8")


def shown(name: str, value: float | None) -> str:
    return "-" if value is None else SHOWN.get(name, lambda v: f"{v:.3f}")(value)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def plain_cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, behind an apostrophe, which it takes for 'this is text'."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


@functools.lru_cache(maxsize=2)
def load(path: str | None, tokenizer: str | None, miniature: bool) -> Any:
    from fz.weights.clip import choose_clip

    return choose_clip(path, tokenizer, miniature)


def clip_for(folder: Path, path: str | None, tokenizer: str | None = None) -> Any:
    """The CLIP for a results folder: the one at path ('none': None), else the miniature's if the run was the
    miniature's.
    """
    settings = (read_run(folder) or {}).get("settings")
    return load(path, tokenizer, isinstance(settings, Mapping) and settings.get("checkpoint", "") is None)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m fz.evaluate", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders that python -m fz.run wrote")
    parser.add_argument("--clip", metavar="PATH", help=CLIP_HELP)
    parser.add_argument("--tokenizer", metavar="DIR", help="CLIP's vocab.json and merges.txt, for a CLIP that has none")
    parser.add_argument("--truth", metavar="DIR", help="frames that the edit should be")
    parser.add_argument("--masks", metavar="DIR", help="pictures that are white where the edit should be")
    parser.add_argument(
        "--flow", metavar="NPY", help="the source's motion, (F - 1, H, W, 2) pixels to the next frame; else estimated"
    )
    parser.add_argument(
        "--out", metavar="NAME", help="write all rows to NAME.json and NAME.csv (default: each beside its results)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that are no evaluation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(list(sys.argv[1:] if argv is None else argv)))


def answer(argv: list[str]) -> None:
    given = build_parser().parse_args(argv)
    folders = [expanded(folder, "results") for folder in given.results]
    # before minutes of measuring
    outs = [expanded(given.out, "out")] if given.out else [folder / "evaluation" for folder in folders]
    for out in outs:
        check_replaceable(out, given.overwrite)
    truth = read_truth(given.truth, given.masks, given.flow)
    measured = [measure_folder(folder, clip_for(folder, given.clip, given.tokenizer), truth) for folder in folders]
    rows = [row for found in measured for row in found]
    print(table(rows))
    for out, found in zip(outs, [rows] if given.out else measured, strict=True):
        write_rows(out, found)
        print(f"in {out}.json and {out}.csv")
    if not given.out:
        for folder in folders:
            completed(folder, "evaluation.json", "evaluation.csv")


if __name__ == "__main__":
    sys.exit(main())
