"""The bench of `--fast`'s parts: paired, resumed, drawn. Nothing here says how good or fast anything is."""

import numpy as np
import pytest

from bench import pareto, pareto_clips
from bench.pareto_clips import Way, drawing, table
from bench.pareto_ways import WAYS
from fz import mini
from fz.mini.setup import Setup
from fz.settings.fast import FAST
from fz.weights.load import load_checkpoint


def rows(**changes):
    base = {"background psnr": 25.0, "outline iou": 0.8, "right": 1.0, "seconds": 40.0}
    return {i: base | {"background psnr": 25.0 + i} | {k: v + i for k, v in changes.items()} for i in range(3)}


def test_differences_are_paired():
    found = table({"exact": rows(), "fast": rows(**{"background psnr": 24.0, "seconds": 8.0})})
    line = next(line for line in found.splitlines() if line.startswith("| fast"))
    # clips differ by 1 dB each, the ways by exactly 1: no interval but 0
    assert "(-1.00 ± 0.00)" in line and line.startswith("| fast | 3 | 0.2")


def test_the_fast_way_is_what_the_flag_takes():
    assert WAYS["fast"] == {"steps": 8, **FAST}


def test_a_way_edits_by_its_settings():
    checkpoint = load_checkpoint(mini.checkpoint())
    way = Way.of(checkpoint, Setup(2, 64), {"steps": 5, "solver": "dpm++2m", "reuse": 2, "guidance_window": (0, 0.5)})
    model = way.model
    assert (model.solver, model.reuse.every, model.schedule.steps) == ("dpm++2m", 2, 5)
    assert way.guidance().window == (0, 0.5) and way.net is None and len(way.key()) == 32


def test_a_point_stands_where_its_figures_say():
    picture = np.array(drawing({"exact": rows(), "fast": rows(**{"seconds": 10.0, "right": -0.8})}))
    red = np.argwhere((picture == (220, 20, 60)).all(-1)).mean(0)
    blue = np.argwhere((picture == (70, 130, 180)).all(-1)).mean(0)
    assert red[1] < blue[1] and red[0] > blue[0], "further left, as it took less, and lower"


def test_seconds_are_of_one_machine_and_figures_of_one_preset(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(pareto_clips, "told", lambda way, name, i: taken.append(name) or {"figures": rows()[i]})
    monkeypatch.setattr(Way, "of", classmethod(lambda cls, loaded, setup, settings: Way(None, None, setup)))
    monkeypatch.setattr(Way, "key", lambda self: "k")

    def measure():
        pareto_clips.rows_of(None, Setup(2, 64), ["exact", "fast"], range(1), tmp_path)
        return len(taken)

    assert [measure(), measure()] == [2, 2]
    monkeypatch.setattr(pareto_clips, "machine", lambda device: "another CPU")
    assert [measure(), measure()] == [4, 4]
    monkeypatch.setitem(pareto_clips.PRESETS, "shape", {"threshold": 0.9})
    assert [measure(), measure()] == [6, 6]
    monkeypatch.undo()


@pytest.mark.slow
def test_a_clip_is_measured_once(tmp_path, capsys):
    line = ["--frames", "2", "--size", "64", "--clips", "1", "--ways", "fast", "--out", str(tmp_path)]
    assert pareto.main(line) == 0
    first = capsys.readouterr().out
    assert "clip 0, fast:" in first and (tmp_path / "pareto.png").stat().st_size > 1000
    assert pareto.main(line) == 0
    assert "clip 0" not in capsys.readouterr().out
