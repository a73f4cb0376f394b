"""How is a cell of Table 1 computed, kept and found again?

A cell is one method on one clip and seed, all of the clip's edits from one inversion; it is one JSON file, written
whole, so that a bench that was stopped goes on and a second run changes nothing. What the cells say, `bench.summary`
makes of them: table1.md and table1.json. Held-out clips are judged by the miniature's CLIP unless told otherwise. Rows
that cannot be computed here are listed with why.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.here import commit, machine
from bench.summary import ranked, summary, table, verdict
from bench.table1_config import in_words, of_config
from bench.table1_key import fingerprint, key_of
from bench.table1_rows import ABLATED, MISSING, SHAPES, TABLE, TableRow, methods_of
from fz.clips.media import atomic, to_uint8, write_json, write_pngs
from fz.metrics.measure import TITLES, Truth, measure
from fz.records import NUMBER
from fz.results import own
from fz.results.cells import cell, each
from fz.results.folder import RUN, read_run
from fz.settings.config import PRESETS, ClipSettings, EditSettings, Settings

CELL = {
    "commit": str,
    "rows": [{"clip": str, "kind": str, "target": str, "seed": int, **dict.fromkeys(TITLES, (*NUMBER, None))}],
}


@dataclass(frozen=True)
class Job:
    """One clip and what it is edited to. truths: one for each edit; kinds: 'attribute', 'shape', 'style' or ''
    (unknown).
    """

    name: str
    settings: Settings
    kinds: tuple[str, ...]
    truths: tuple[Truth, ...]


def held_out_job(i: int, given: argparse.Namespace) -> Job:
    """A story that no training saw, with one thing; edited in colour, kind and style, with the world's own drawing as
    truth.
    """
    from fz.mini.data import as_given
    from fz.mini.figures import held_out_story, targets
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
    clip = ClipSettings(str(folder), frames=given.frames, size=given.size)
    settings = Settings(
        clip,
        caption(story),
        tuple(edits),
        checkpoint=given.checkpoint,
        steps=given.steps,
        guidance=given.guidance,
        threads=given.threads,
    )
    return Job(f"{i:04d}", settings, tuple(kinds), tuple(truths))


def config_job(config: str, given: argparse.Namespace) -> Job:
    """A clip of a released config."""
    settings = of_config(config, given)
    return Job(Path(config).stem, settings, ("",) * len(settings.edits), (Truth(),) * len(settings.edits))


def settings_of(method: TableRow, job: Job, seed: int, out: Path) -> tuple[Settings, list[int]]:
    """The run's settings, and which of the job's edits are in it."""
    chosen = [i for i, kind in enumerate(job.kinds) if not kind or kind in method.only]
    edits = tuple(dataclasses.replace(job.settings.edits[i], **method.edit) for i in chosen)
    folder = out / "runs" / slugged(method) / f"{job.name}-{seed}"
    return dataclasses.replace(
        job.settings, **method.settings, edits=edits, seed=seed, out=str(folder), overwrite=True
    ), chosen


def cell_of(method: TableRow, job: Job, seed: int, out: Path, clip: Any, by: str, keep: bool) -> list[dict[str, Any]]:
    """The rows of one cell: read where it was done before with the same settings, files and judge (`by`), else run and
    written.

    Each says the commit that it was done at.
    """
    from fz.pipeline import run

    settings, chosen = settings_of(method, job, seed, out)
    if not chosen:
        return []

    def measured() -> dict[str, Any]:
        result = run(settings)
        source, rows = to_uint8(result.video.frames), []
        for i, edited in zip(chosen, result.edits, strict=True):
            row = measure(source, to_uint8(edited.frames), (settings.source, edited.target), clip, job.truths[i])
            rows.append({"clip": job.name, "seed": seed, "kind": job.kinds[i], "target": edited.target, **row})
        # before the cell is written, so that no kill leaves a folder beside one that is done
        if not keep:
            folder = Path(settings.out)
            own.remove(folder, [*(read_run(folder) or {"files": []})["files"], RUN])
            own.unmake([folder])
        return {"method": method.name, "commit": commit(), "rows": rows}

    done = cell(out / "cells" / slugged(method) / f"{job.name}-{seed}.json", key_of(settings, by), CELL, measured)
    return [row | {"commit": done["commit"]} for row in done["rows"]]


def slugged(method: TableRow) -> str:
    from fz.results.folder import slug

    return slug(method.name, 60)


def rows_of(given: argparse.Namespace, number: int) -> dict[str, list[dict[str, Any]]]:
    """All cells of one clip, by method."""
    job = config_job(given.config[number], given) if given.config else held_out_job(number, given)
    clip, by = judge_of(given.clip_model, given.tokenizer, given.checkpoint, bool(given.config))
    cells = {
        m.name: [cell_of(m, job, seed, given.out, clip, by, given.keep) for seed in range(given.seeds)]
        for m in methods_of(given.methods)
    }
    return {name: sum(seeds, []) for name, seeds in cells.items()}


@functools.lru_cache(maxsize=1)
def judge_of(path: str | None, tokenizer: str | None, checkpoint: str | None, own_clips: bool) -> tuple[Any, str]:
    """The CLIP, and fingerprints of the checkpoint, of it and of its tokenizer. The miniature's knows held-out clips
    only.
    """
    from fz import mini
    from fz.checkpoint import choose_clip

    clip = choose_clip(path, tokenizer, miniature=not own_clips)
    used = None if clip is None else path or mini.clip()
    return clip, " ".join(fingerprint(model) for model in (checkpoint or mini.FOLDER, used, tokenizer))


def bench(given: argparse.Namespace) -> str:
    """Run what is not done yet; write table1.json and table1.md, whose text is returned."""
    rows: dict[str, list[dict[str, Any]]] = {m.name: [] for m in methods_of(given.methods)}
    count = len(given.config) if given.config else given.clips
    for number, found in enumerate(each(functools.partial(rows_of, given), range(count), given.processes), start=1):
        for name, more in found.items():
            rows[name] += more
        print(f"clip {number}: done", file=sys.stderr, flush=True)
    how = in_words(given)
    text, summaries, said = page(rows, how)
    content = {"settings": how, "summaries": summaries, "missing": MISSING, "verdict": said}
    write_json(given.out / "table1.json", content)
    with atomic(given.out / "table1.md") as part:
        part.write_text(text, encoding="utf-8")
    return text


def page(rows: Mapping[str, Sequence[Mapping[str, Any]]], how: str) -> tuple[str, dict[str, Any], str]:
    """Of the rows of each method: (Markdown, summaries, verdict). how: the settings, in words."""
    import torch

    if "FateZero" in rows:
        rows = {**rows, SHAPES: [row for row in rows["FateZero"] if row["kind"] == "shape"]}
    summaries = {name: summary(found) for name, found in rows.items()}
    compared = [m.name for m in TABLE]
    said = verdict(rows, compared)
    commits = sorted({row["commit"] for found in rows.values() for row in found})
    clips = len({row["clip"] for found in rows.values() for row in found})
    about = (
        f"{clips} clips, {how}; means ± 95% intervals; {machine(torch.device('cpu'))}, torch {torch.__version__}, "
        f"commit {', '.join(commits)}"
    )
    parts = ["# Table 1", about, table(compared, summaries, ranked(summaries, compared))]
    parts += [f"place: in Tem-Con, among methods that edit. {said}"]
    parts += ["Not here: " + "; ".join(f"{name} ({why})" for name, why in MISSING.items()) + "."]
    if any(rows.get(m.name) for m in ABLATED):
        parts += ["# Ablations", table(["FateZero", SHAPES, *(m.name for m in ABLATED)], summaries)]
    return "\n\n".join(parts) + "\n", summaries, said
