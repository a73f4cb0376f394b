"""Measures the miniature, and the editor on it, on many held-out stories: `python -m fz.mini.evaluate --processes 2`.

One JSON file for each picture and clip, so that an evaluation that was stopped goes on and a second one changes
nothing; then `fz.mini.bars`' table. What the figures are is in `fz.mini.figures`.
"""

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fz import mini
from fz.clips.media import atomic
from fz.errors import FzError
from fz.mini.bars import Row, table
from fz.mini.controlled import measure_control
from fz.mini.edited import Bench, Setup
from fz.mini.figures import MEASURES
from fz.mini.measure import errors, load_eye
from fz.model import fast_cpu
from fz.records import NUMBER, Each
from fz.results.cells import cell, each, folder_of_cells
from fz.shell import Parser, answered, leave
from fz.weights.control import check_beside, load_control
from fz.weights.load import load_checkpoint


def figures_of(bench: Bench, key: str, folder: Path, part: str, i: int) -> list[Row]:
    """The figures of the i-th picture or clip: read where they were measured before, with the same key, else measured
    and written.
    """

    def measured() -> dict[str, Any]:
        figures = (MEASURES | {"control": measure_control})[part](bench, i)
        return {"figures": {figure.name: float(figure.value) for figure in figures}}

    content = cell(folder / f"{part.replace(' ', '-')}-{i:04d}.json", key, {"figures": Each(NUMBER)}, measured)
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
    folder.mkdir(parents=True, exist_ok=True)
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


def answer(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m fz.mini.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=256, help="sampled from captions of one thing")
    parser.add_argument("--two", type=int, default=128, help="pictures sampled from captions of two things")
    parser.add_argument("--clips", type=int, default=64, help="edited: six edits and two reconstructions each")
    parser.add_argument(
        "--ablations", type=int, default=32, help="clips edited without parts of the method: five edits each"
    )
    parser.add_argument("--removals", type=int, default=64, help="clips from which the thing is removed")
    parser.add_argument("--one-of-two", type=int, default=64, help="clips of two things, one of which is edited")
    parser.add_argument("--control", metavar="PATH", default=None, help="a ControlNet on outlines")
    parser.add_argument("--controlled", type=int, default=0, help="clips edited with it: nine edits each")
    parser.add_argument("--frames", type=int, default=Setup.frames)
    parser.add_argument("--size", type=int, default=Setup.size, help="side of the pictures")
    parser.add_argument("--steps", type=int, default=Setup.steps, help="of an edit")
    parser.add_argument("--picture-steps", type=int, default=Setup.picture_steps)
    parser.add_argument("--guidance", type=float, default=Setup.guidance)
    parser.add_argument("--checkpoint", default=None, help="another folder; default: the bundled miniature")
    parser.add_argument("--processes", type=int, default=1, help="one core each")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/mini"),
        help="a file a picture or clip; what is there is not done again",
    )
    given = parser.parse_args(argv)
    setup = Setup(given.frames, given.size, given.steps, given.picture_steps, given.guidance)
    counts = {
        "picture": given.pictures,
        "two": given.two,
        "clip": given.clips,
        "removal": given.removals,
        "one of two": given.one_of_two,
        "ablation": given.ablations,
        "control": given.controlled,
    }
    if given.controlled and given.control is None:
        raise FzError(f"controlled: got {given.controlled} clips without a ControlNet, expected one. Pass --control.")
    jobs = [(part, i) for part, count in counts.items() for i in range(count)]
    rows: list[Row] = []
    with folder_of_cells(given.out):
        found = evaluate(setup, given.checkpoint or mini.checkpoint(), jobs, given.out, given.processes, given.control)
        for n, some in enumerate(found, start=1):
            rows += some
            print(f"{n} of {len(jobs)}", end="\r" if n < len(jobs) else "\n", flush=True)
        report(setup, rows, given.out)


def report(setup: Setup, rows: Sequence[Row], out: Path) -> None:
    """Print the table and write it."""
    judge = ", ".join(f"{name} {value:.1%}" for name, value in errors(load_eye(), 160).items())
    head = [f"# {platform.machine()}, torch {torch.__version__}; {setup}", f"# the judge on drawn pictures: {judge}"]
    lines = [*head, *table(sorted(rows))]
    print("\n".join(lines))
    with atomic(out / "table.txt") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    return answered(lambda: answer(argv))


if __name__ == "__main__":
    leave(main())
