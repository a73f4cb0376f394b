"""Sweeps: which settings a text means, that mistakes are answered, and that a sweep is one inversion, one sheet and a
row an edit.
"""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import fz
from fz import inverted, mini
from fz import sweep as door
from fz.errors import FzError
from fz.run import main
from fz.settings import sweep
from fz.settings.config import EditSettings
from fz.settings.parse import parse


def test_sweep_values():
    variants = sweep.read_sweeps(["self_replace=0.2:0.9:0.1", "blend_th=0.2,none"])
    assert len(variants) == 16 and variants[0] == (("self_replace", 0.2), ("threshold", 0.2))
    assert variants[-1] == (("self_replace", 0.9), ("threshold", None))
    edit = sweep.varied(EditSettings("x", reweight=(("car", 3.0),)), (("reweight.blue", 2.0), ("self_replace", 0.4)))
    assert edit.reweight == (("car", 3.0), ("blue", 2.0)) and edit.self_replace == (0.0, 0.4)


@pytest.mark.parametrize(
    "texts, said",
    [
        ([], "got nothing"),
        (["self_replac=0.2"], "Did you mean 'self_replace'"),
        (["threshold=a"], "expected NAME="),
        (["threshold=0:1"], "expected NAME="),
        (["threshold=0:1:0"], "expected NAME="),
        (["threshold=none:1:0.1"], "expected NAME="),
        (["threshold=0:1:0.001"], "1001 values"),
        (["threshold=0:1:0.05", "self_replace=0:1:0.1"], "231 combinations"),
        (["threshold=0.1", "blend_th=0.2"], "twice"),
    ],
    ids=str,
)
def test_sweep_mistakes(texts, said):
    with pytest.raises(FzError, match=said):
        sweep.read_sweeps(texts)


FLAGS = [
    "--checkpoint",
    "x",
    "--video",
    "clip.mp4",
    "--source",
    "a red car",
    "--target",
    "a blue car",
    "--target",
    "a red bus",
]


def test_flag_multiplies_every_edit():
    request = parse([*FLAGS, "--threshold.1", "0.4", "--sweep", "self_replace=0.2,0.3", "cross_replace=0.5,0.6"])
    assert [(e.target, e.self_replace[1], e.cross_replace[1], e.threshold) for e in request.settings.edits] == [
        (target, s, c, threshold)
        for target, threshold in (("a blue car", None), ("a red bus", 0.4))
        for s in (0.2, 0.3)
        for c in (0.5, 0.6)
    ]
    assert len(request.sweep) == 4 and request.settings.out.endswith("-sweep")
    # again for more, and a folder that is named is taken
    again = parse([*FLAGS, "--out", "here", "--sweep", "self_replace=0.2,0.3", "--sweep=cross_replace=0.5,0.6"])
    assert again.sweep == request.sweep and again.settings.out == "here"
    assert parse(FLAGS).sweep == () and parse(FLAGS).settings.out is None
    assert len(parse([*FLAGS, "--list-words", "--sweep", "threshold=0.2,0.3"]).settings.edits) == 2


@pytest.mark.parametrize(
    "more, said",
    [
        (["--sweep", "blend_thr=0.2,0.3"], "Did you mean 'blend_th'"),
        (["--sweep", "self_replace=2"], "self_replace: got"),
        (["--sweep", "reweight.blue=none"], "reweight: got None for 'blue'"),
        (["--sweep"], "--sweep: expected at least one argument"),
        (["--sweep", "threshold=0:1:0.01"], "101 values"),
        (["--sweep", "threshold=0.01:0.6:0.01"], "2 targets of 60 settings"),
        (["--clip-model", "none"], "without --sweep or --report"),
    ],
    ids=str,
)
def test_mistakes_at_the_command_line_are_one_line(more, said, capsys):
    assert main([*FLAGS, *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_the_module_is_the_same_command(capsys):
    assert door.main(FLAGS) == 2 and "got no --sweep" in capsys.readouterr().err
    assert door.main(["--sweep", "self_replac=1"]) == 2 and "Did you mean 'self_replace'" in capsys.readouterr().err


def test_what_computes_nothing_needs_no_sweep(capsys):
    for flag in ("-h", "--help"):
        assert door.main([flag]) == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: python -m fz.sweep [flags]") and "--threshold TAU|none" in said
    assert door.main(["--version"]) == 0 and capsys.readouterr().out == f"fz {fz.__version__}\n"
    assert door.main(["--list-words"]) == 0 and "The miniature knows:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [main, door.main], ids=["fz.run", "fz.sweep"])
def test_one_inversion_one_sheet(shared, tmp_path, monkeypatch, capsys, command):
    count, invert = [], inverted.invert
    monkeypatch.setattr(inverted, "invert", lambda *args: count.append(1) or invert(*args))
    out = tmp_path / "out"
    argv = [
        "--checkpoint",
        str(shared / "golden/tiny_sd"),
        "--video",
        str(shared / "data/jeep"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    argv += [
        "--source",
        "a silver jeep driving down a road",
        "--target",
        "a red jeep driving down a road",
        "--out",
        str(out),
    ]
    argv += [
        "--size",
        "64",
        "--frames",
        "2",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--sweep",
        "self_replace=0:1:0.5",
        "blend_th=0.3,none",
    ]
    assert command(argv) == 0
    assert len(count) == 1
    said = capsys.readouterr().out
    rows = json.loads((out / "sweep.json").read_text())
    assert [(r["self_replace"], r["threshold"]) for r in rows] == [(s, t) for s in (0, 0.5, 1) for t in (0.3, None)]
    assert all(row["label"] in said for row in rows) and f"in {out}/sweep.png" in said
    assert all(row["warp_error"] > 0 and row["tem_con"] is None for row in rows)  # no CLIP knows this model's pictures
    assert [row["label"] for row in csv.DictReader((out / "sweep.csv").open())] == [row["label"] for row in rows]
    # a row for the source and for each edit, each with both frames
    with Image.open(out / "sweep.png") as sheet:
        assert sheet.height > 7 * 64 and sheet.width >= 2 * 64
    # and each is what a run with these settings alone gives
    alone = argv[: argv.index("--sweep")]
    alone[alone.index(str(out))] = str(tmp_path / "alone")
    assert main([*alone, "--self-replace", "0.5", "--threshold", "0.3"]) == 0
    pictures = [
        np.asarray(Image.open(folder / "00000.png"))
        for folder in (tmp_path / "alone/frames/edit-0", out / "frames/edit-2")
    ]
    assert np.array_equal(*pictures)
    # done again, nothing is computed again; a dry run writes no sheet
    before = (out / "sweep.png").read_bytes(), (out / "sweep.csv").read_bytes()
    assert command(argv) == 0 and before == ((out / "sweep.png").read_bytes(), (out / "sweep.csv").read_bytes())
    argv[argv.index(str(out))] = str(tmp_path / "dry")
    assert command([*argv, "--dry-run"]) == 0 and not (tmp_path / "dry").exists()


def test_clip_judges_the_sweep_and_the_report(shared, tmp_path):
    argv = [
        "--checkpoint",
        str(shared / "golden/tiny_sd"),
        "--video",
        str(shared / "data/jeep"),
        "--cache",
        "none",
        "--device",
        "cpu",
    ]
    argv += [
        "--source",
        "a silver jeep driving down a road",
        "--target",
        "a red jeep driving down a road",
        "--out",
        str(tmp_path / "out"),
    ]
    argv += [
        "--size",
        "64",
        "--frames",
        "2",
        "--steps",
        "1",
        "--sweep",
        "threshold=0.3,none",
        "--report",
        "--clip",
        mini.clip(),
    ]
    assert main(argv) == 0
    rows = json.loads((tmp_path / "out/sweep.json").read_text())
    assert all(-1 <= row["tem_con"] <= 1 and 0 <= row["frame_acc"] <= 1 for row in rows)
    page = (tmp_path / "out/report.html").read_text()
    assert "Tem-Con" in page and "a red jeep driving down a road, threshold none" in page
    # one that is none is said before anything is computed
    argv[argv.index("--clip") + 1], argv[argv.index("--out") + 1] = str(tmp_path), str(tmp_path / "other")
    assert main(argv) == 2 and not (tmp_path / "other").exists()
