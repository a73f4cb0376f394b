"""Inputs by folders that fz itself wrote, and that were damaged since: caches, results, tunings, cells of a table."""

import json
import os
import shutil
from pathlib import Path
from random import Random

from .checks import Input
from .damage import damaged, json_damaged, odd_file
from .files import head_changed, pickled
from .ground import Ground, joined

FOREIGN = (
    "photos/a.jpg",
    ".hidden.part",
    "x/.y.part",
    "frames/mine.png",
    "steps/0000.safetensors",
    "notes.txt",
    "edit-9/a",
    "lock",
)


def foreign(chance: Random, folder: Path, keep: list[Path]) -> None:
    """Files of somebody else's among fz's own, which must stay."""
    for name in chance.sample(FOREIGN, chance.choice((1, 2, 4))):
        path = folder / "mine" / name if name.startswith("steps") else folder / name
        if not path.exists() and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mine " * 20)
            os.utime(path, (10**9, 10**9))  # long ago
            keep.append(path)


def wound(chance: Random, file: Path, folder: Path, keep: list[Path]) -> str:
    """Damage one file of fz's; returns how."""
    what = chance.choice(("damaged", "damaged", "damaged", "gone", "odd", "outside", "folder"))
    if file.is_dir() and not file.is_symlink():
        return "folder"
    if what == "damaged" and file.is_file():
        data = file.read_bytes()
        if file.suffix == ".json" and chance.random() < 0.9:
            data = json_damaged(chance, file.read_text(errors="replace")) if sound(file) else damaged(chance, data)
        elif file.suffix == ".safetensors" and len(data) > 100 and chance.random() < 0.5:
            data = head_changed(chance, data) if sound_head(data) else damaged(chance, data)
        elif file.suffix == ".pt" and chance.random() < 0.5:
            import torch

            data = pickled(chance, {"weight": torch.zeros(3), "steps": torch.tensor(1)})
        else:
            data = damaged(chance, data)
        file.write_bytes(data)
    elif what == "odd" and (file.is_file() or file.is_symlink()):
        what = odd_file(chance, file)
    elif what == "outside":
        beside = folder.parent / "canary" / f"of-{file.name}"
        if not beside.exists():
            beside.write_bytes(file.read_bytes() if file.is_file() else b"")
        file.unlink(missing_ok=True)
        file.symlink_to(beside)
    elif what == "folder":
        file.unlink(missing_ok=True)
        file.mkdir()
        (file / "mine.txt").write_text("mine")
        keep.append(file / "mine.txt")
    else:
        file.unlink(missing_ok=True)
    return what


def sound(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text()), dict)
    except ValueError:
        return False


def sound_head(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]), dict)
    except ValueError:
        return False


def wounded(chance: Random, made: Path, folder: Path, keep: list[Path], pattern: str = "*") -> str:
    """Copy what was made and damage some of it."""
    shutil.copytree(made, folder, symlinks=True)
    said = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        files = sorted(p for p in folder.rglob(pattern) if p.is_file() and "mine" not in p.parts)
        important = [p for p in files if p.suffix in (".json", ".pt")]
        if files:
            file = chance.choice(important if important and chance.random() < 0.5 else files)
            said.append(f"{file.relative_to(folder)} {wound(chance, file, folder, keep)}")
    if chance.random() < 0.4:
        foreign(chance, folder, keep)
    return ", ".join(said)


def caches(chance: Random, ground: Ground, work: Path) -> Input:
    """An inversion that is damaged, or not fz's own: the same run has to give the same frames."""
    keep: list[Path] = []
    (work / "canary").mkdir(exist_ok=True)
    if chance.random() < 0.1:
        about = odd_file(chance, work / "cache")
    else:
        about = wounded(chance, ground.results / "cache", work / "cache", keep)
    more = (
        {}
        if chance.random() < 0.7
        else {"store": chance.choice(("disk", "memory")), "target": "a green car on the sand"}
    )
    given = ground.flags(**{"save_latents": True, "threshold": "0.5", **more})
    same = None if more else (work / "o", ground.results / "o")
    return Input("caches", "fz.run", joined(given), work, about, keep=keep, same=same)


def results(chance: Random, ground: Ground, work: Path) -> Input:
    """A folder of results that is damaged: measured, shown, or run again."""
    keep: list[Path] = []
    (work / "canary").mkdir(exist_ok=True)
    pattern = chance.choice(("*", "*", "run.json", "*.png", "frames/**/*", "*.safetensors"))
    about = wounded(chance, ground.results / "o", work / "o", keep, pattern)
    judge = chance.choice(("none", "none", str(ground.judge)))
    command = chance.choice(("fz.evaluate", "fz.report", "fz.run", "fz.run"))
    if command == "fz.run":
        more = chance.choice(({}, {"overwrite": True}, {"overwrite": True, "steps": "1"}, {"report": True}))
        given = ground.flags(**{"save_latents": True, "threshold": "0.5", **more})
        same = (work / "o", ground.results / "o") if "steps" not in more else None
        return Input("results", command, joined(given), work, about, keep=keep, same=same)
    argv = ["o", "--clip-model", judge]
    if command == "fz.evaluate":
        argv += measures(chance, ground, work)
    return Input("results", command, argv, work, about, keep=keep, outs=("o", "e", "evaluation.json", "evaluation.csv"))


def measures(chance: Random, ground: Ground, work: Path) -> list[str]:
    """Truths of fz.evaluate, some of them damaged."""
    import numpy as np

    way = chance.randrange(6)
    if way == 0:
        shape = chance.choice(((1, 64, 64, 2), (1, 64, 64), (0,), (2, 64, 64, 2), (1, 32, 32, 2), ()))
        kind = chance.choice(("f4", "f8", "i8", "?", "c16", "U3", "M8[s]"))
        np.save(work / "flow.npy", np.zeros(shape, kind))
        if chance.random() < 0.4:
            (work / "flow.npy").write_bytes(damaged(chance, (work / "flow.npy").read_bytes()))
        elif chance.random() < 0.3:
            np.save(work / "flow.npy", np.array([{"a": 1}], object), allow_pickle=True)
        return ["--flow", "flow.npy"]
    if way == 1:
        return [
            "--masks",
            chance.choice((str(ground.clip), "o/frames/source", "o", "nowhere", "o/run.json", "/dev/null")),
        ]
    if way == 2:
        return [
            "--truth",
            chance.choice((str(ground.clip), "o/frames/edit-0", "o/masks", "nowhere", str(ground.movie))),
        ]
    if way == 3:
        return [
            "--out",
            chance.choice(("e", "e/x", "o", "o/e", "canary", "", "~/x", "a" * 300, "/dev/full", "\x1b[31m")),
        ]
    return []


def tunings(chance: Random, ground: Ground, work: Path) -> Input:
    """A tuning that is damaged: gone on with, or edited with."""
    keep: list[Path] = []
    (work / "canary").mkdir(exist_ok=True)
    pattern = chance.choice(("*", "*.json", "*.pt", "*.csv"))
    about = wounded(chance, ground.tuned / "o", work / "o", keep, pattern)
    if chance.random() < 0.25:
        argv = joined(ground.flags(checkpoint="o", out="edited"))
        return Input("tunings", "fz.run", argv, work, about, keep=keep, outs=("edited", "cache"))
    more = chance.choice(({}, {"steps": "3"}, {"overwrite": True}, {"dry_run": True}, {"prompt": "a blue car"}))
    return Input("tunings", "fz.tune", joined(ground.tuning(**more)), work, about, keep=keep)


def cells(chance: Random, ground: Ground, work: Path) -> Input:
    """A table, or an evaluation of the miniature, whose cells, clips or summaries are damaged."""
    keep: list[Path] = []
    (work / "canary").mkdir(exist_ok=True)
    # rarely: the judge's own errors take seconds
    if chance.random() < 0.12:
        about = wounded(chance, ground.evaluated / "o", work / "o", keep)
        return Input("cells", "fz.mini.evaluate", joined(ground.evaluation()), work, about, keep=keep)
    about = wounded(chance, ground.table / "o", work / "o", keep, chance.choice(("cells/**/*", "cells/**/*", "*")))
    more = {} if chance.random() < 0.7 else {"clip": chance.choice(("nowhere", str(ground.judge), str(ground.clip)))}
    return Input("cells", "bench.table1", joined(ground.table1(**more)), work, about, keep=keep)
