"""The bench of Table 1 with a stand-in for the editor: what is run, what is kept, what goes on after a kill."""

import json
from pathlib import Path

import pytest
import torch

from bench import table1
from fz import metrics, pipeline
from fz.video import Video, read_clip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def runs(monkeypatch):
    """pipeline.run that edits by inverting colours; the settings it was called with."""
    called = []

    def run(settings, progress=None):
        called.append(settings)
        frames = read_clip(settings.clip, 16).frames
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        edits = [pipeline.Edited(edit, frames * (-1 if i % 2 else 0.5), [], {}) for i, edit in enumerate(settings.edits)]
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
    assert count == 2 * (len(table1.TABLE) + len(table1.ABLATED))
    assert "| FateZero |" in said and "Null-text" in said and "Fig. 4, 9" in said and "±" in said
    assert bench(tmp_path / "a") == 0 and len(runs) == count and snapshot(tmp_path / "a") == before
    assert capsys.readouterr().out == said
    # a cell that was cut short is done again, to the same bytes
    cell = tmp_path / "a/cells/fatezero/0001-0.json"
    cell.write_text(cell.read_text()[:50])
    (tmp_path / "a/table1.json").unlink()
    assert bench(tmp_path / "a") == 0 and len(runs) == count + 1 and snapshot(tmp_path / "a") == before
    # other settings are other cells
    assert bench(tmp_path / "a", "--steps", "5") == 0 and len(runs) == 2 * count + 1


def test_methods_are_what_they_say(tmp_path, runs):
    bench(tmp_path)
    first = {Path(s.out).parent.name: s for s in runs[: len(table1.TABLE) + len(table1.ABLATED)]}
    assert [e.threshold for e in first["fatezero"].edits] == [None, 0.3, None]
    methods = {"ddim-inversion-target-prompt": "ddim", "frame-wise-null-text-p2p": "null-p2p", "frame-wise-sdedit": "sdedit",
               "plug-and-play-features": "pnp", "frame-wise-ddim-inversion-target-prompt": "ddim"}  # fmt: skip
    assert {name: s.method for name, s in first.items()} == {name: methods.get(name, "fatezero") for name in first}
    assert first["frame-wise-ddim-inversion-target-prompt"].frame_index == (0,)
    assert first["fig-3-8-attention-of-reconstruction"].attention == "reconstruction"
    assert [e.self_replace for e in first["fig-4-9-no-self-attention-fused"].edits] == [(0.0, 0.0)]
    full = first["fig-4-9-all-self-attention-fused-without-mask"].edits
    assert [(e.threshold, e.self_replace) for e in full] == [(None, (0.0, 1.0))]
    assert [e.cross_replace for e in first["no-cross-attention-fused"].edits] == [(0.0, 0.0)] * 3
    rows = json.loads((tmp_path / "cells/fatezero/0000-0.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["attribute", "shape", "style"]
    assert rows[0]["psnr_background"] is not None and rows[2]["psnr_background"] is None and rows[0]["psnr_truth"] > 0


def test_summary_and_verdict():
    rows = [{"clip": c, "tem_con": v} for c, v in (("a", 0.9), ("a", 0.7), ("b", 0.6), ("c", 0.4))]
    got = table1.summary(rows)["tem_con"]
    # clips are the unit: 0.8, 0.6, 0.4
    assert got["clips"] == 3 and got["mean"] == pytest.approx(0.6) and got["half"] == pytest.approx(4.3027 * 0.2 / 3**0.5)
    assert [metrics.student(df) for df in (1, 4, 31, 1000)] == pytest.approx([12.706, 2.776, 2.0395, 1.9623], abs=0.01)

    def numbers(tem, acc):
        return {"tem_con": {"mean": tem}, "frame_acc": {"mean": acc}}

    plain = table1.TABLE[1].name
    assert "FateZero, 0.9000" in table1.verdict({"FateZero": numbers(0.9, 0.9), plain: numbers(0.95, 0.2)})
    assert "FateZero is not: 0.9000" in table1.verdict({"FateZero": numbers(0.9, 0.9), plain: numbers(0.95, 0.8)})
    assert "none counts" in table1.verdict({"FateZero": numbers(0.9, 0.1)})
