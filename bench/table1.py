"""`python -m bench.table1`: the paper's Table 1 and ablations on held-out clips of the miniature's world, or on clips of released configs.

A cell is one method on one clip and seed, all of the clip's edits from one inversion; it is one JSON file, written whole, so that a bench
that was stopped goes on and a second run changes nothing. A table gives each method's mean and its 95% interval, the clip being the unit.
Held-out clips are judged by the miniature's CLIP unless told otherwise. Rows that cannot be had here are listed with why.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fz.config import ABLATIONS, PRESETS, EditSettings, Settings
from fz.errors import FzError
from fz.evaluate import TITLES, Parser, Truth, measure
from fz.media import atomic, to_uint8, write_pngs
from fz.metrics import half_interval
from fz.output import as_json
from fz.video import Clip


@dataclass(frozen=True)
class Method:
    """A row: what it changes in the settings, of the run and of each edit. only: the kinds of edit for which it is a different method."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ("attribute", "shape", "style")


def ablation(title: str, name: str, only: tuple[str, ...] = Method.only) -> Method:
    """The row of one of `--ablate`."""
    edit = {path.removeprefix("edits.*."): value for path, value in ABLATIONS[name].items() if path.startswith("edits.*.")}
    return Method(title, {path: value for path, value in ABLATIONS[name].items() if not path.startswith("edits.")}, edit, only)


TABLE = (
    Method("FateZero"),
    Method("DDIM inversion, target prompt", {"method": "ddim"}),
    Method("frame-wise: Null-text & p2p", {"method": "null-p2p"}),
    Method("frame-wise: SDEdit", {"method": "sdedit"}),
    Method("Plug-and-play features", {"method": "pnp"}),
    Method("frame-wise: DDIM inversion, target prompt", {"method": "ddim", "frame_index": (0,)}),
    Method("frame-wise: attention fusion, no mask", {"frame_index": (0,)}, {"threshold": None}),
)
ABLATED = (
    ablation("Fig. 3, 8: attention of reconstruction", "reconstruction"),
    ablation("Fig. 4, 9: no self-attention fused", "no-self", ("shape",)),
    ablation("Fig. 4, 9: all self-attention fused, without mask", "full-self", ("shape",)),
    ablation("no cross-attention fused", "no-cross"),
)
# rows of the paper's Table 1 that are not in the table, and why
MISSING = {
    "Tune-A-Video + DDIM": "pass --checkpoint TUNED; it is then 'DDIM inversion, target prompt'",
    "Layered neural atlas": "not built",
}
COLUMNS = tuple(TITLES)


@dataclass(frozen=True)
class Job:
    """One clip and what it is edited to. truths: one for each edit; kinds: 'attribute', 'shape', 'style' or '' (unknown)."""

    name: str
    settings: Settings
    kinds: tuple[str, ...]
    truths: tuple[Truth, ...]


def held_out_job(i: int, given: argparse.Namespace) -> Job:
    """A story that no training saw, with one thing; edited in colour, kind and style, with the world's own drawing as truth."""
    from fz import mini
    from fz.mini.data import as_given
    from fz.mini.evaluate import held_out_story, targets
    from fz.mini.world import caption

    story = held_out_story(i)
    drawn = as_given(story, given.frames, given.size)
    folder = given.out / "clips" / f"{given.frames}x{given.size}" / f"{i:04d}"
    if not folder.is_dir():
        write_pngs(folder, drawn.frames)
    edits, truths, kinds = [], [], []
    for kind, target in targets(story, i).items():
        after = as_given(target, given.frames, given.size)
        edits.append(EditSettings(caption(target), **PRESETS[kind]))
        # a style changes all of the picture: no background
        region = None if kind == "style" else np.any(drawn.masks, 0) | np.any(after.masks, 0)
        truths.append(Truth(after.frames, region, drawn.flow))
        kinds.append(kind)
    clip = Clip(str(folder), frames=given.frames, size=given.size)
    guidance = given.guidance if given.guidance is not None else mini.DEFAULTS["guidance"]
    settings = Settings(
        clip, caption(story), tuple(edits), checkpoint=given.checkpoint, steps=given.steps, guidance=guidance, threads=given.threads
    )
    return Job(f"{i:04d}", settings, tuple(kinds), tuple(truths))


def config_job(config: str, given: argparse.Namespace) -> Job:
    """A clip of a released config, read as `fz.run --config` reads it."""
    from fz.cli import parse

    settings = parse(["--config", config, *(["--checkpoint", given.checkpoint] if given.checkpoint else [])]).settings
    return Job(Path(config).stem, settings, ("",) * len(settings.edits), (Truth(),) * len(settings.edits))


def settings_of(method: Method, job: Job, seed: int, out: Path) -> tuple[Settings, list[int]]:
    """The run's settings, and which of the job's edits are in it."""
    chosen = [i for i, kind in enumerate(job.kinds) if not kind or kind in method.only]
    edits = tuple(dataclasses.replace(job.settings.edits[i], **method.edit) for i in chosen)
    folder = out / "runs" / slugged(method) / f"{job.name}-{seed}"
    return dataclasses.replace(job.settings, **method.settings, edits=edits, seed=seed, out=str(folder), overwrite=True), chosen


def cell(method: Method, job: Job, seed: int, out: Path, clip: Any, by: str, keep: bool) -> list[dict[str, Any]]:
    """The rows of one cell: read where it was done before with the same settings and weights (`by`), else run and written."""
    from fz.pipeline import run

    settings, chosen = settings_of(method, job, seed, out)
    if not chosen:
        return []
    # the clip by its name: the bench's folder may be moved
    about = as_json(settings) | {"clip": {**as_json(settings)["clip"], "path": Path(settings.clip.path).name}, "out": None, "by": by}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = out / "cells" / slugged(method) / f"{job.name}-{seed}.json"
    if file.is_file():
        try:
            done = json.loads(file.read_text(encoding="utf-8"))
            if done["key"] == key:
                return done["rows"]
        except (ValueError, KeyError, TypeError):
            pass  # not ours or damaged: done again
    result = run(settings)
    source, rows = to_uint8(result.video.frames), []
    for i, edited in zip(chosen, result.edits, strict=True):
        row = measure(source, to_uint8(edited.frames), (settings.source, edited.settings.target), clip, job.truths[i])
        rows.append({"clip": job.name, "seed": seed, "kind": job.kinds[i], "target": edited.settings.target, **row})
    with atomic(file) as part:
        part.write_text(
            json.dumps({"key": key, "method": method.name, "commit": commit(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    if not keep:
        shutil.rmtree(settings.out, ignore_errors=True)
    return rows


def fingerprint(path: str | Path | None) -> str:
    """Of a checkpoint's weights, read here and there: names, sizes, and the last 64 KB of each file."""
    if path is None:
        return "none"
    sha, root = hashlib.sha256(), Path(path).expanduser()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.suffix in (".safetensors", ".bin", ".ckpt", ".pt", ".pth"):
            with open(file, "rb") as opened:
                size = opened.seek(0, 2)
                opened.seek(max(0, size - 65536))
                sha.update(f"{file.name} {size} ".encode() + opened.read())
    return sha.hexdigest()[:16]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Metric -> mean over clips of their edits' means, half the 95% interval (Student's t; absent for one clip), and how many clips."""
    out = {}
    for name in COLUMNS:
        by_clip: dict[str, list[float]] = {}
        for row in rows:
            if row.get(name) is not None:
                by_clip.setdefault(row["clip"], []).append(row[name])
        values = [sum(v) / len(v) for v in by_clip.values()]
        if values:
            out[name] = {"mean": float(np.mean(values)), "clips": len(values)}
            if len(values) > 1:
                out[name]["half"] = half_interval(np.array(values))
    return out


def table(methods: Sequence[Method], summaries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a row for each method, mean ± half the interval."""
    names = [name for name in COLUMNS if any(name in summaries.get(m.name, {}) for m in methods)]
    lines = [f"| method | {' | '.join(TITLES[n] for n in names)} |", "|---" * (len(names) + 1) + "|"]
    for method in methods:
        cells = []
        for name in names:
            value, scale = summaries.get(method.name, {}).get(name), 1000 if name == "warp_error" else 1
            half = f" ± {scale * value['half']:.3f}" if value and "half" in value else ""
            cells.append(f"{scale * value['mean']:.3f}{half}" if value else "-")
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(summaries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Whether FateZero is first in Tem-Con among methods that edit (Frame-Acc >= 0.8), as the paper says."""
    having = {m.name: summaries[m.name] for m in TABLE if "tem_con" in summaries.get(m.name, {})}
    if not having:
        return "No --clip, hence no Tem-Con and Frame-Acc."
    editing = {name: s["tem_con"]["mean"] for name, s in having.items() if s.get("frame_acc", {}).get("mean", 0) >= 0.8}
    if not editing:
        return "No method reaches Frame-Acc 0.8: none counts as editing."
    first = max(editing, key=editing.get)
    said = f"First in Tem-Con among methods that edit (Frame-Acc >= 0.8): {first}, {editing[first]:.4f}."
    if first == "FateZero":
        return said
    return f"{said} FateZero is not: " + (f"{editing['FateZero']:.4f}." if "FateZero" in editing else "it does not reach Frame-Acc 0.8.")


def slugged(method: Method) -> str:
    from fz.output import slug

    return slug(method.name, 60)


def commit() -> str:
    try:
        said = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip() or "unknown"


def build_parser() -> argparse.ArgumentParser:
    from fz import mini

    parser = Parser(prog="python -m bench.table1", description="The paper's Table 1 and ablations.", allow_abbrev=False)
    parser.add_argument("--clips", type=int, default=32, help="held-out clips of the miniature's world")
    parser.add_argument("--config", action="append", metavar="YAML", help="instead, clips of released configs; again for more")
    parser.add_argument("--seeds", type=int, default=1, help="editing draws nothing: more than one is for baselines that do")
    parser.add_argument("--checkpoint", metavar="PATH", help="default: the miniature")
    parser.add_argument("--clip", metavar="PATH", help="CLIP, for Tem-Con and Frame-Acc; default: the miniature's for its clips; 'none'")
    parser.add_argument("--tokenizer", metavar="DIR", help="for a CLIP that has none")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=mini.SIZE, help="side of the pictures")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=1, help="clips at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("results/table1"))
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    return parser


def rows_of(given: argparse.Namespace, number: int) -> dict[str, list[dict[str, Any]]]:
    """All cells of one clip, by method."""
    job = config_job(given.config[number], given) if given.config else held_out_job(number, given)
    clip, by = judge_of(given.clip, given.tokenizer, given.checkpoint, bool(given.config))
    methods = (*TABLE, *ABLATED)
    return {m.name: [row for seed in range(given.seeds) for row in cell(m, job, seed, given.out, clip, by, given.keep)] for m in methods}


@functools.lru_cache(maxsize=1)
def judge_of(path: str | None, tokenizer: str | None, checkpoint: str | None, own_clips: bool) -> tuple[Any, str]:
    """The CLIP, and a fingerprint of it and of the checkpoint: the miniature's knows held-out clips only."""
    from fz import mini
    from fz.clip_weights import choose_clip

    clip = choose_clip(path, tokenizer, miniature=not own_clips)
    used = None if clip is None else path or mini.clip()
    return clip, f"{fingerprint(checkpoint or mini.FOLDER)} {fingerprint(used)}"


def rows_alone(given: argparse.Namespace, number: int) -> dict[str, list[dict[str, Any]]]:
    """`rows_of` in a process beside others: on one thread."""
    import torch

    torch.set_num_threads(1)
    given.threads = 1
    return rows_of(given, number)


def bench(given: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {m.name: [] for m in (*TABLE, *ABLATED)}
    for number, found in enumerate(every_clip(given)):
        for name, more in found.items():
            rows[name] += more
        print(f"clip {number + 1}: done", file=sys.stderr, flush=True)
    shape = [row for row in rows["FateZero"] if row["kind"] == "shape"]
    summaries = {name: summary(r) for name, r in rows.items()} | {"FateZero, shape edits": summary(shape)}
    content = {"summaries": summaries, "missing": MISSING, "verdict": verdict(summaries)}
    with atomic(given.out / "table1.json") as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def every_clip(given: argparse.Namespace) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """`rows_of` every clip, in order, by as many processes as are asked for."""
    count = len(given.config) if given.config else given.clips
    if given.processes == 1:
        yield from (rows_of(given, number) for number in range(count))
        return
    # processes of their own: a forked one may hang in a library's locks
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(functools.partial(rows_alone, given), range(count))


def main(argv: Sequence[str] | None = None) -> int:
    from fz.run import explain, say_error

    try:
        given = build_parser().parse_args(argv)
        if given.clips < 1 or given.seeds < 1:
            raise FzError("--clips, --seeds: expected at least 1.")
        content = bench(given)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        say_error("interrupted. The same command goes on from the last cell.")
        return 130
    except Exception as error:
        line, code = explain(error)
        say_error(line)
        return code
    import platform

    import torch

    print(f"# Table 1 - {platform.machine()}, torch {torch.__version__}, commit {commit()}\n")
    print(table(TABLE, content["summaries"]))
    print("\nNot here: " + "; ".join(f"{name} ({why})" for name, why in MISSING.items()) + f".\n{content['verdict']}")
    print("\n# Ablations\n")
    print(table((TABLE[0], Method("FateZero, shape edits"), *ABLATED), content["summaries"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
