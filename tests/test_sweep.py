"""Sweeps: which settings a text means, that mistakes are answered, and that a sweep is one inversion, one sheet and a
row an edit.
"""

import csv
import dataclasses
import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

import fz
from fz import inverted, mini
from fz import sweep as door
from fz.clips.video import Video
from fz.errors import FzError
from fz.inverted import InvertedClip
from fz.results import sheet
from fz.results.result import Edited, Result
from fz.run import main
from fz.settings import sweep
from fz.settings.config import EditSettings
from fz.settings.effect import FUSING, STEADY, effect
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


@pytest.mark.parametrize(
    "more, said",
    [
        (
            ["--mask", "m.png", "--sweep", "threshold=0.2,0.3"],
            "got threshold with the mask m.png, which is used in its",
        ),
        (["--mask", "m.png", "--sweep", "threshold=0.2,none"], "got threshold with the mask m.png"),
        (["--mask", "m.png", "--sweep", "blend_latents=0.2,0.3"], "got blend_latents with the mask m.png"),
        (["--mask", "m.png", "--sweep", "threshold=0.2,0.3", "self_replace=0.2,0.8"], "got threshold with the mask"),
        (["--self-replace", "0", "--sweep", "threshold=0.2,none"], "got threshold with self_replace 0"),
        (["--ablate", "no-self", "--sweep", "threshold=0.2,0.3"], "got threshold with self_replace 0"),
        (["--cross-replace", "0", "--sweep", "reweight.car=1,4"], "got reweight.car with cross_replace 0"),
        (["--align", "plain", "--sweep", "self_replace=0.2,0.8"], "got self_replace with align plain"),
        (["--method", "ddim", "--sweep", "cross_replace=0.2,0.8"], "got cross_replace with method ddim"),
        (["--method", "null-p2p", "--sweep", "threshold=0.2,0.8"], "got threshold with method null-p2p"),
        (["--steps", "20", "--sweep", "self_replace=0.81,0.82"], "got self_replace 0.81, 0.82, which are the same"),
        (["--sweep", "threshold=1,none"], "got threshold 1, none, which are the same"),
    ],
    ids=str,
)
def test_what_can_change_nothing_is_refused(more, said, capsys):
    """Before torch is imported, whatever of it can be known from the settings."""
    assert main([*FLAGS[:-2], *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "more",
    [
        ["--mask", "m.png", "--sweep", "self_replace=0.2,0.8"],
        ["--mask", "m.png", "--sweep", "blend_latents=0.3,none"],
        ["--mask.1", "m.png", "--sweep", "threshold=0.2,0.3"],
        ["--sweep", "self_replace=0,0.8", "threshold=0.2,0.3"],
        ["--self-replace", "0", "--keep-background", "--sweep", "threshold=0.2,0.4"],
        ["--align", "plain", "--keep-background", "--sweep", "threshold=0.2,0.4"],
        ["--self-replace", "0", "--remove", "red", "--sweep", "threshold=0.2,0.4"],
        ["--cross-replace", "0", "--cross-replace", "car=0.5", "--sweep", "reweight.car=1,4"],
        ["--method", "null-p2p", "--sweep", "self_replace=0.2,0.8"],
        ["--sweep", "self_replace=0.2:0.9:0.01"],
        ["--mask", "m.png", "--sweep", "threshold=0.3"],
    ],
    ids=str,
)
def test_what_changes_something_somewhere_is_swept(more):
    """For one of two targets, for one value of what is swept beside it."""
    flags = FLAGS if "--mask.1" in more else FLAGS[:-2]
    assert parse([*flags, *more]).sweep


@pytest.fixture(scope="module")
def inversion():
    editor = fz.load(device="cpu")
    return editor.invert(
        fz.read(mini.example()["clip.path"], frames=2, size=64), "a red car moving on the sand", steps=4, fuse="half"
    )


@pytest.mark.parametrize(
    ("same", "given", "name", "values"),
    [
        (True, {"mask": "m.png"}, "threshold", (0.2, 0.6)),
        (True, {"mask": "m.png", "keep_background": True}, "threshold", (0.2, 0.6)),
        (True, {"mask": "m.png"}, "blend_latents", (0.2, 0.6)),
        (True, {"self_replace": 0.2}, "threshold", (0.2, 0.6)),
        (True, {}, "threshold", (1, None)),
        (True, {"cross_replace": 0.1}, "reweight", ({"blue": 2}, {"blue": 8})),
        (True, {"align": "plain"}, "self_replace", (0.2, 0.8)),
        (True, {"align": "plain"}, "cross_replace", (0.2, 0.8)),
        (True, {"align": "plain"}, "threshold", (0.2, 0.6)),
        (False, {"align": "plain", "keep_background": True}, "threshold", (0.2, 0.6)),
        (True, {"align": "plain", "keep_background": True}, "threshold", (0.3, None)),
        (True, {"align": "plain", "keep_background": True}, "blend_latents", (0.2, 0.6)),
        (True, {"align": "plain", "keep_background": True, "mask": "m.png"}, "threshold", (0.2, 0.6)),
        (True, {}, "self_replace", (0.5, 0.7)),
        (True, {}, "cross_replace", (0.4, 0.5)),
        (False, {}, "threshold", (0.2, 0.6)),
        (False, {"remove": "red", "self_replace": 0}, "threshold", (0.2, 0.6)),
        (False, {"keep_background": True, "self_replace": 0}, "threshold", (0.2, 0.6)),
        (True, {"keep_background": True, "self_replace": 0}, "threshold", (0.3, None)),
        (False, {}, "blend_latents", (0.2, 0.6)),
        (False, {}, "self_replace", (0.5, 0.8)),
        (False, {}, "cross_replace", (0.5, 0.7)),
        (False, {}, "reweight", ({"blue": 2}, {"blue": 8})),
        (False, {"cross_replace": 0, "cross_replace_words": {"blue": 0.5}}, "reweight", ({"blue": 2}, {"blue": 8})),
    ],
    ids=str,
)  # fmt: skip
def test_edits_are_the_same_where_their_effect_is(same, given, name, values, inversion, tmp_path):
    """To the bit, where attention is fused at one level."""
    if "mask" in given:
        given = {**given, "mask": str(tmp_path / "m.png")}
        Image.fromarray(np.tri(128, dtype=np.uint8) * 255).save(given["mask"])
    edits = [inversion.edit("a blue car moving on the sand", **given, **{name: value}) for value in values]
    effects = [effect(edited.settings.edits[0], 4) for edited in edits]
    assert (effects[0] == effects[1]) == same == torch.equal(edits[0].frames, edits[1].frames)


def test_methods_that_fuse_are_those_of_the_table():
    from fz.baselines import METHODS
    from fz.masks import EditRegion

    assert set(FUSING) == {name for name, method in METHODS.items() if method.fuses}
    of_masks = inspect.signature(InvertedClip.mask).parameters["threshold"].default
    assert EditRegion().threshold == STEADY == of_masks, "the area that is shown is the one that is used"


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
        "2",
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


def test_the_sheet_says_how_much_of_the_background_each_edit_keeps(tmp_path, monkeypatch):
    """Outside its own masks, as fz.evaluate says it of a run; of an edit without masks nothing."""
    labels = []
    monkeypatch.setattr(sheet, "contact_sheet", lambda clips, names, tile: labels.extend(names) or clips[0][0])
    source = torch.zeros(2, 3, 32, 32)
    inside, outside = source.clone(), source.clone()
    inside[:, :, 8:16, 8:16] = 1
    outside[:, :, 24:, 24:] = 1
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    first, later, small = mask.clone(), mask.clone(), torch.ones(2, 2, 2, dtype=torch.bool)
    first[:, 1, 1], later[:, 0, 0] = True, True
    masks = {0: {(2, 2): small, (4, 4): first}, 1: {(4, 4): later}}
    settings = parse(["--video", str(tmp_path), "--source", "a car", "--target", "a boat"]).settings
    settings = dataclasses.replace(settings, checkpoint="another")
    edits = [Edited(settings, frames, [], where) for frames, where in ((inside, masks), (outside, masks), (inside, {}))]
    result = Result(settings, [], str(tmp_path), Video(source, 8, (0, 1)), edits=edits)
    rows = sheet.write_sweep(result, [(("threshold", value),) for value in (0.3, 0.5, None)])
    assert [row["psnr_background"] for row in rows[::2]] == [100, None] and rows[1]["psnr_background"] < 30
    assert rows[0]["ssim_background"] is not None and rows[0]["seen_kind"] is None
    assert ["bg PSNR" in label for label in labels] == [False, True, True, False]
