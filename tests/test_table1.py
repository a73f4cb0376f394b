"""The bench of Table 1 with a stand-in for the editor: what is run, what is kept, what goes on after a kill."""

import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import alive

from bench import here, summary, table1, table1_cells
from bench.table1_key import fingerprint, key_of
from fz import pipeline
from fz.clips.media import write_pngs
from fz.clips.video import Video, read_clip
from fz.errors import FzError
from fz.metrics import numbers
from fz.settings.config import ClipSettings, EditSettings, Settings


@pytest.fixture
def runs(monkeypatch):
    """pipeline.run that edits by inverting colours; the settings it was called with."""
    called = []

    def run(settings, progress=None):
        called.append(settings)
        frames = read_clip(settings.clip, 16).frames
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        edits = [
            pipeline.Edited(dataclasses.replace(settings, edits=(edit,)), frames * (-1 if i % 2 else 0.5), [], {})
            for i, edit in enumerate(settings.edits)
        ]
        return pipeline.Result(settings, [], settings.out, Video(frames, 8, tuple(range(len(frames)))), edits=edits)

    monkeypatch.setattr(pipeline, "run", run)
    return called


def bench(out, *more):
    return table1.main(["--clips", "2", "--frames", "3", "--size", "32", "--clip", "none", "--out", str(out), *more])


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_changes_nothing_and_a_kill_costs_a_cell(tmp_path, runs, capsys):
    assert bench(tmp_path / "a") == 0
    said, before, count = capsys.readouterr().out, snapshot(tmp_path / "a"), len(runs)
    assert count == 2 * (len(table1_cells.TABLE) + len(table1_cells.ABLATED))
    assert "| FateZero |" in said and "Null-text" in said and "Fig. 4, 9" in said and "±" in said
    assert bench(tmp_path / "a") == 0 and len(runs) == count and snapshot(tmp_path / "a") == before
    assert capsys.readouterr().out == said
    # a cell that was cut short is done again, to the same bytes
    (cell,) = tmp_path.glob("a/cells/fatezero/0001-0-*.json")
    cell.write_text(cell.read_text()[:50])
    (tmp_path / "a/table1.json").unlink()
    assert bench(tmp_path / "a") == 0 and len(runs) == count + 1 and snapshot(tmp_path / "a") == before
    # other settings are other cells, which lie beside these
    assert bench(tmp_path / "a", "--steps", "5") == 0 and len(runs) == 2 * count + 1
    assert bench(tmp_path / "a") == 0 and len(runs) == 2 * count + 1
    assert len(list(tmp_path.glob("a/cells/fatezero/0001-0-*.json"))) == 2


def test_methods_are_what_they_say(tmp_path, runs):
    bench(tmp_path)
    first = {Path(s.out).parent.name: s for s in runs[: len(table1_cells.TABLE) + len(table1_cells.ABLATED)]}
    assert [e.threshold for e in first["fatezero"].edits] == [None, 0.3, None]
    methods = {
        "ddim-inversion-target-prompt": "ddim",
        "frame-wise-null-text-p2p": "null-p2p",
        "frame-wise-sdedit": "sdedit",
        "plug-and-play-features": "pnp",
        "frame-wise-ddim-inversion-target-prompt": "ddim",
    }
    assert {name: s.method for name, s in first.items()} == {name: methods.get(name, "fatezero") for name in first}
    assert first["frame-wise-ddim-inversion-target-prompt"].frame_index == (0,)
    assert first["fig-3-8-attention-of-reconstruction"].attention == "reconstruction"
    assert [e.self_replace for e in first["fig-4-9-no-self-attention-fused"].edits] == [(0.0, 0.0)]
    full = first["fig-4-9-all-self-attention-fused-without-mask"].edits
    assert [(e.threshold, e.self_replace) for e in full] == [(None, (0.0, 1.0))]
    assert [e.cross_replace for e in first["no-cross-attention-fused"].edits] == [(0.0, 0.0)] * 3
    (cell,) = tmp_path.glob("cells/fatezero/0000-0-*.json")
    rows = json.loads(cell.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["attribute", "shape", "style"]
    assert rows[0]["psnr_background"] is not None and rows[2]["psnr_background"] is None and rows[0]["psnr_truth"] > 0


def test_methods_are_chosen_and_counted(tmp_path, runs, capsys):
    assert bench(tmp_path, "--clips", "3", "--methods", "sdedit", "fatezero", "no-self") == 0
    said = capsys.readouterr().out
    assert len(runs) == 9 and {p.name for p in (tmp_path / "cells").iterdir()} == {
        "fatezero",
        "frame-wise-sdedit",
        "fig-4-9-no-self-attention-fused",
    }
    assert (
        "3 clips, 3 frames, 32 px, 50 steps, guidance 3; means" in said
        and "| frame-wise: SDEdit |" in said
        and "Null-text" not in said
    )
    assert (tmp_path / "table1.md").read_text() == said and f"commit {table1_cells.commit()}" in said
    # what was done counts for more methods, more clips and other processes
    assert (
        bench(tmp_path, "--clips", "3", "--methods", "fatezero", "sdedit", "--seeds", "2", "--threads", "1") == 0
        and len(runs) == 15
    )
    assert bench(tmp_path, "--methods", "sdedi") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "Did you mean 'sdedit'" in err
    assert bench(tmp_path, "--processes", "0") == 2


@pytest.fixture
def config(tmp_path):
    """A released config of a clip of its own."""

    def write(name="jeep", colour=90, **more):
        folder = tmp_path / f"clip-{name.replace('/', '-')}"
        write_pngs(folder, np.full((3, 64, 64, 3), colour, np.uint8))
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        content = {
            "dataset_config": {"path": str(folder), "prompt": "a red car", "n_sample_frame": 3, "image_size": 64},
            "editing_config": {"editing_prompts": ["a blue car"], "num_inference_steps": 2, "guidance_scale": 4.0},
            **more,
        }
        file.write_text(json.dumps(content))
        return str(file)

    return write


def of_configs(out, *words):
    return table1.main(["--clip", "none", "--methods", "fatezero", "--out", str(out), *words])


def test_a_config_is_run_with_its_settings_and_the_flags_over_them(tmp_path, config, runs, capsys):
    assert of_configs(tmp_path / "t", "--config", config()) == 0
    assert (runs[-1].steps, runs[-1].guidance, runs[-1].clip.frames, runs[-1].clip.size) == (2, 4.0, 3, 64)
    assert "1 clips, 3 frames, 64 px, 2 steps, guidance 4; means" in capsys.readouterr().out
    flags = ["--steps", "3", "--frames", "2", "--size", "32", "--guidance", "5", "--threads", "1"]
    assert of_configs(tmp_path / "t", "--config", config(), *flags) == 0
    assert (runs[-1].steps, runs[-1].guidance, runs[-1].clip.frames, runs[-1].clip.size) == (3, 5.0, 2, 32)
    assert runs[-1].threads == 1 and "2 frames, 32 px, 3 steps, guidance 5" in (tmp_path / "t/table1.md").read_text()


def test_flags_that_contradict_each_other_are_refused(tmp_path, config, runs, capsys):
    first, second = config("a/jeep"), config("b/Jeep", colour=200)
    for words, said in (
        (["--config", first, "--clips", "2"], "clips: got 2 beside --config"),
        (["--config", first, "--config", second], "have one name, expected one for each"),
        (["--config", first, "--config", first], "have one name, expected one for each"),
        (["--threads", "2", "--processes", "2"], "threads: got 2 beside --processes 2"),
    ):
        assert of_configs(tmp_path / "t", *words) == 2 and not runs
        assert said in capsys.readouterr().err


def test_a_cell_is_done_again_when_its_clip_has_changed(tmp_path, config, runs):
    file = config()
    assert of_configs(tmp_path / "t", "--config", file) == 0 and len(runs) == 1
    # the same pictures, written again, are the same clip
    config()
    assert of_configs(tmp_path / "t", "--config", file) == 0 and len(runs) == 1
    config(colour=160)
    assert of_configs(tmp_path / "t", "--config", file) == 0 and len(runs) == 2


@pytest.mark.parametrize("what", ["lora", "embedding", "mask", "control_video", "control", "vae"])
def test_a_key_is_of_what_files_say(tmp_path, what):
    write_pngs(tmp_path / "clip", np.zeros((1, 32, 32, 3), np.uint8))
    (tmp_path / "net").mkdir()
    file, keys = tmp_path / "read.safetensors", []
    value = {"lora": ((str(file), 1.0),), "embedding": ((str(file), "<cat>"),)}.get(what, str(file))
    more = {what: value} | ({"control": str(tmp_path / "net")} if what == "control_video" else {})
    edit = EditSettings("a blue car", **({"mask": value} if what == "mask" else {}))
    clip = ClipSettings(str(tmp_path / "clip"))
    settings = Settings(clip, "a car", (edit,), **({} if what == "mask" else more))
    for content in (b"first", b"other", b"first"):
        file.write_bytes(content)
        keys.append(key_of(settings, "judge"))
    assert keys[0] == keys[2] != keys[1] and key_of(settings, "other") not in keys


def test_a_hub_name_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = []
    for commit in ("a" * 40, "b" * 40):
        folder = tmp_path / "models--owner--name"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs/main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        found += [fingerprint(name) for name in ("owner/name", "owner/name:file.ckpt")]
    assert len(set(found)) == 4
    with pytest.raises(FzError, match="owner/nothing does not exist"):
        fingerprint("owner/nothing")


def test_a_checkpoints_configs_count(tmp_path):
    (tmp_path / "scheduler").mkdir()
    found = []
    for beta in ("0.012", "0.02"):
        (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({"beta_end": beta}))
        found.append(fingerprint(tmp_path))
    assert len(set(found)) == 2


@pytest.mark.parametrize("folder", ["bench", "fz", "kernels", "weights"])
def test_a_commit_says_where_files_differ_from_it(tmp_path, monkeypatch, folder):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    for name in ("bench", "fz", "kernels", "weights", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "here.py").write_text("before")
    git("init", "-q"), git("add", "."), git("commit", "-qm", "all")
    monkeypatch.setattr(here, "__file__", str(tmp_path / "bench/here.py"))
    (tmp_path / "docs/here.py").write_text("after")
    assert not here.commit().endswith("+") and here.commit() != "unknown"
    (tmp_path / folder / "here.py").write_text("after")
    assert here.commit().endswith("+")


def test_summary():
    rows = [{"clip": c, "tem_con": v} for c, v in (("a", 0.9), ("a", 0.7), ("b", 0.6), ("c", 0.4))]
    got = summary.summary(rows)["tem_con"]
    # clips are the unit: 0.8, 0.6, 0.4
    assert (
        got["clips"] == 3 and got["mean"] == pytest.approx(0.6) and got["half"] == pytest.approx(4.3027 * 0.2 / 3**0.5)
    )


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 6, 7, 10, 31, 1000])
def test_students_quantile(df):
    """Its density, summed from 0, has 0.475 of its mass there; 0.001 more or less has another."""

    def mass(end):
        t = np.linspace(0, end, 400_001)
        density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
        values = density * (1 + t * t / df) ** (-(df + 1) / 2)
        return (values[1:] + values[:-1]).sum() / 2 * (t[1] - t[0])

    t = numbers.student(df)
    assert mass(t - 0.001) < 0.475 < mass(t + 0.001)


def rows_of(tem, acc, spread=(0.0, 0.0, 0.0)):
    return [
        {"clip": str(i), "kind": "style", "commit": "c", "tem_con": tem + d, "frame_acc": acc}
        for i, d in enumerate(spread)
    ]


@pytest.mark.parametrize(
    "ours, plain, said",
    [
        (
            rows_of(0.9, 0.9),
            rows_of(0.95, 0.2),
            "First in Tem-Con among methods that edit (Frame-Acc >= 0.8): FateZero, 0.9000.",
        ),
        (rows_of(0.9, 0.9), rows_of(0.8, 0.8), "FateZero is ahead of ddim by 0.1000 ± 0.0000 clip by clip."),
        (
            rows_of(0.9, 0.9),
            rows_of(0.95, 0.8),
            "ddim, 0.9500. FateZero is not: 0.9000, place 2. ddim is ahead of FateZero by 0.0500",
        ),
        (
            rows_of(0.9, 0.9, (0, 0.1, -0.1)),
            rows_of(0.89, 0.9),
            "by 0.0100 ± 0.2484 clip by clip (the interval holds 0: not told apart)",
        ),
        (rows_of(0.9, 0.1), rows_of(0.95, 0.8), "FateZero is not: its Frame-Acc is 0.100."),
        (rows_of(0.9, 0.1), rows_of(0.9, 0.2), "No method reaches Frame-Acc 0.8"),
        ([], rows_of(0.9, 0.9), "FateZero was not run."),
        ([{"clip": "a"}], [], "No --clip-model, hence no Tem-Con and Frame-Acc."),
        ([{"clip": "a", "tem_con": None, "frame_acc": 0.9}], [], "Clips of one frame have no Tem-Con."),
        ([], [], "None of the methods that are compared was run."),
    ],
)
def test_verdict(ours, plain, said):
    assert said in summary.verdict({"FateZero": ours, "ddim": plain}, ["FateZero", "ddim"])


def test_the_table_itself_says_the_place():
    plain = table1_cells.TABLE[1].name
    text, _, said = table1_cells.page(
        {"FateZero": rows_of(0.9, 0.9), plain: rows_of(0.95, 0.8), table1_cells.TABLE[2].name: rows_of(0.99, 0.3)},
        "50 steps",
    )
    assert (
        "| FateZero | 2 | 0.9000 ± 0.0000 |" in text
        and f"| {plain} | 1 |" in text
        and f"| {table1_cells.TABLE[2].name} | - |" in text
    )
    assert "FateZero is not" in said and said in text


def unsigned(content):
    """Without the commit, which may be another by the time that a killed bench is started again."""
    return re.sub(rb'commit[": ]+[0-9a-f, ]+', b"", content)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again_it_gives_the_same_bytes(shared, tmp_path, processes):
    def start(name):
        arguments = [
            "--checkpoint",
            str(shared / "golden/tiny_sd"),
            "--clips",
            "3",
            "--frames",
            "2",
            "--size",
            "64",
            "--steps",
            "2",
        ]
        arguments += ["--methods", "fatezero", "ddim", "sdedit", "--processes", str(processes), "--threads", "1"]
        environment = os.environ | {"FZ_CACHE": str(tmp_path / f"cache-{name}"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bench.table1", *arguments, "--out", str(tmp_path / name)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            command, env=environment, cwd=table1_cells.__file__.rpartition("/bench")[0], start_new_session=True, **pipes
        )

    def cells():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("cells/*/*.json")}

    whole = start("whole")
    said, errors = whole.communicate()
    assert whole.returncode == 0, errors
    expected, kept, chance = snapshot(tmp_path / "whole"), {}, random.Random(processes)
    for done in (1, 3, 6):  # of nine
        process = start("killed")
        while len(cells()) < done and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 1))
        process.kill()
        process.communicate(timeout=60)
        end = time.monotonic() + 30
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not alive(process.pid), "a killed bench leaves processes at work"
        assert process.returncode == -signal.SIGKILL and kept.items() <= cells().items(), (
            "a cell that was done was done again"
        )
        kept = cells()
    for _ in range(2):
        last = start("killed")
        again, errors = last.communicate()
        assert last.returncode == 0 and unsigned(again.encode()) == unsigned(said.encode()), errors
        found = {p: unsigned(b) for p, b in snapshot(tmp_path / "killed").items() if p.suffix != ".part"}
        assert found == {p: unsigned(b) for p, b in expected.items()}
