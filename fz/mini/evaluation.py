"""How are the miniature, and the editor on it, measured on many held-out stories, by several processes?

One JSON file for each picture and clip, so that what was stopped goes on and a second time changes nothing.
"""

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fz.clips.media import atomic
from fz.memory.inversions import digest
from fz.mini.bars import Row, table
from fz.mini.controlled import VARIANTS, measure_control
from fz.mini.edited import Bench
from fz.mini.eye import errors, load_eye
from fz.mini.figures import EDIT_SETTINGS, MEASURES
from fz.mini.setup import Setup
from fz.model import fast_cpu
from fz.records import NUMBER, Each
from fz.results.cells import cell, each
from fz.settings.config import PRESETS
from fz.weights.control import check_beside, load_control
from fz.weights.load import load_checkpoint


def figures_of(bench: Bench, key: str, folder: Path, part: str, i: int) -> list[Row]:
    """The figures of the i-th picture or clip: read where they were measured before, with the same key of the bench and
    the same settings of the edits, else measured and written.
    """
    whole_key = digest(key, part, *(EDIT_SETTINGS | {"control": (PRESETS, VARIANTS)})[part])

    def measured() -> dict[str, Any]:
        figures = (MEASURES | {"control": measure_control})[part](bench, i)
        return {"figures": {figure.name: float(figure.value) for figure in figures}}

    content = cell(folder / f"{part.replace(' ', '-')}-{i:04d}.json", whole_key, {"figures": Each(NUMBER)}, measured)
    return [(i, name, value) for name, value in content["figures"].items()]


def evaluate(
    setup: Setup,
    checkpoint: str,
    jobs: list[tuple[str, int]],
    folder: Path,
    processes: int = 1,
    control: str | None = None,
) -> Iterator[list[Row]]:
    """The rows of each of the jobs (a name of MEASURES or 'control', number), in their order. More than one process:
    each has one thread. control: a ControlNet.
    """
    return each(partial(work, folder), jobs, processes, partial(start, setup, checkpoint, control))


def ready(setup: Setup, checkpoint: str, control: str | None = None) -> Bench:
    fast_cpu.keep_freed_memory()
    loaded, net = load_checkpoint(checkpoint), None
    latent_size = (setup.size // loaded.vae.config.stride,) * 2
    unet, _ = fast_cpu.prepare(loaded.unet, latent_size, setup.frames)
    if control is not None:
        net = load_control(control)
        check_beside(net, unet.config, loaded.vae.config.stride)
        net, _ = fast_cpu.prepare(net, latent_size, setup.frames)
    return Bench(dataclasses.replace(loaded, unet=unet), load_eye(), setup, net)


OWN: list[tuple[Bench, str]] = []  # this process's bench and its key


def start(setup: Setup, checkpoint: str, control: str | None) -> None:
    bench = ready(setup, checkpoint, control)
    OWN[:] = [(bench, bench.key())]


def work(folder: Path, job: tuple[str, int]) -> list[Row]:
    return figures_of(*OWN[0], folder, *job)


def write_table(path: Path, setup: Setup, rows: Sequence[Row]) -> str:
    """Write what the rows say, with how well the judge sees; returns its text."""
    judge = ", ".join(f"{name} {value:.1%}" for name, value in errors(load_eye(), 160).items())
    head = [f"# {platform.machine()}, torch {torch.__version__}; {setup}", f"# the judge on drawn pictures: {judge}"]
    text = "\n".join([*head, *table(sorted(rows))]) + "\n"
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
    return text
