"""How are the miniature, and the editor on it, measured on many held-out stories, by several processes?

One JSON file for each picture and clip, so that what was stopped goes on and a second time changes nothing.
"""

import dataclasses
import multiprocessing
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from fz import records
from fz.clips.media import atomic, write_json
from fz.memory.machine import start_alone
from fz.mini.bars import Row, table
from fz.mini.controlled import measure_control
from fz.mini.edited import Bench
from fz.mini.eye import errors, load_eye
from fz.mini.figures import MEASURES
from fz.mini.setup import Setup
from fz.model import fast_cpu
from fz.weights.control import check_beside, load_control
from fz.weights.load import load_checkpoint


def figures_of(bench: Bench, key: str, part: str, i: int, folder: Path) -> list[Row]:
    """The figures of the i-th picture or clip: read where they were measured before, with the same key, else measured
    and written.
    """
    file = folder / f"{part.replace(' ', '-')}-{i:04d}.json"
    # one that is cut short, or not ours, is measured again
    done = records.read(file, {"key": str, "figures": records.Each(records.NUMBER)})
    if done is not None and done["key"] == key:
        return [(i, name, value) for name, value in done["figures"].items()]
    figures = {figure.name: float(figure.value) for figure in (MEASURES | {"control": measure_control})[part](bench, i)}
    write_json(file, {"key": key, "figures": figures})
    return [(i, name, value) for name, value in figures.items()]


def evaluate(
    setup: Setup,
    checkpoint: str,
    jobs: list[tuple[str, int]],
    folder: Path,
    processes: int = 1,
    control: str | None = None,
) -> Iterator[list[Row]]:
    """The rows of each of the jobs (a name of MEASURES or 'control', number), as they are done. More than one process:
    each has one thread. control: a ControlNet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        bench = ready(setup, checkpoint, control)
        key = bench.key()
        yield from (figures_of(bench, key, part, i, folder) for part, i in jobs)
        return
    # processes of their own: a forked one may hang in a library's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start, initargs=(setup, checkpoint, control)) as pool:
        for done in as_completed([pool.submit(work, part, i, folder) for part, i in jobs]):
            yield done.result()


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


OWN: list[tuple[Bench, str]] = []  # a worker process's bench and its key


def start(setup: Setup, checkpoint: str, control: str | None) -> None:
    start_alone()
    bench = ready(setup, checkpoint, control)
    OWN.append((bench, bench.key()))


def work(part: str, i: int, folder: Path) -> list[Row]:
    return figures_of(*OWN[0], part, i, folder)


def write_table(path: Path, setup: Setup, rows: Sequence[Row]) -> str:
    """Write what the rows say, with how well the judge sees; returns its text."""
    judge = ", ".join(f"{name} {value:.1%}" for name, value in errors(load_eye(), 160).items())
    head = [f"# {platform.machine()}, torch {torch.__version__}; {setup}", f"# the judge on drawn pictures: {judge}"]
    text = "\n".join([*head, *table(sorted(rows))]) + "\n"
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")
    return text
