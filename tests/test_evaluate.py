"""`python -m fz.evaluate`: rows of folders made by hand, files, table, and one line for every mistake."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fz import evaluate
from fz.clips.media import write_png, write_pngs
from fz.metrics.measure import measure
from fz.results import measured

SHAPE = (4, 32, 48, 3)


def make_run(folder, edits=("a blue car", "a red car"), status="done"):
    """A results folder: edit 0 is brighter in a square, edit 1 is the source."""
    source = np.random.default_rng(0).integers(0, 200, SHAPE, dtype=np.uint8)
    edited = source.copy()
    edited[:, 8:16, 8:24] += 51
    write_pngs(folder / "frames/source", source)
    for i, frames in zip(range(len(edits)), (edited, source), strict=False):
        write_pngs(folder / f"frames/edit-{i}", frames)
    settings = {
        "source": "a red car",
        "clip": {"path": "car.mp4"},
        "edits": [{"target": t, "align": "auto"} for t in edits],
    }
    (folder / "run.json").write_text(json.dumps({"status": status, "settings": settings, "files": []}))
    return source, edited


def test_rows_table_and_files(tmp_path, capsys):
    _, edited = make_run(tmp_path / "run")
    mask = np.zeros(SHAPE[:3], np.uint8)
    mask[:, 8:16, 8:24] = 255
    write_pngs(tmp_path / "masks", mask)
    write_pngs(tmp_path / "truth", edited)
    np.save(tmp_path / "flow.npy", np.zeros((3, 32, 48, 2), np.float32))
    argv = [str(tmp_path / "run"), "--masks", str(tmp_path / "masks"), "--truth", str(tmp_path / "truth")]
    assert evaluate.main([*argv, "--flow", str(tmp_path / "flow.npy"), "--out", str(tmp_path / "numbers")]) == 0
    shown = capsys.readouterr().out
    assert "bg PSNR" in shown and "a blue car" in shown and "Tem-Con" not in shown
    first, second = json.loads((tmp_path / "numbers.json").read_text())
    assert first["psnr_background"] == 100 and first["psnr_truth"] == 100 and first["psnr_reconstruction"] is None
    assert second["psnr_reconstruction"] == 100 and second["target"] == "a red car"
    assert second["psnr_truth_masked"] == pytest.approx(20 * np.log10(5), abs=1e-3)
    assert first["masks"] == "given" and first["flow"] == "given" and first["clip"] is None
    rows = list(csv.DictReader((tmp_path / "numbers.csv").open()))
    assert [row["target"] for row in rows] == ["a blue car", "a red car"] and float(rows[0]["psnr_background"]) == 100


def test_given_pictures_are_read_as_clips_and_masks_are(tmp_path):
    """16 bits, jpeg, transparency; before, 16 bits were cut off at 255 and a mask was its red channel."""
    from PIL import Image

    from fz.results.measured import read_truth

    grey = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    for name in ("deep", "flat", "jpeg", "clear"):
        (tmp_path / name).mkdir()
    Image.fromarray(grey).save(tmp_path / "deep/0.png")
    Image.fromarray((grey / 257).round().astype(np.uint8)).save(tmp_path / "flat/0.png")
    deep, flat = (read_truth(str(tmp_path / name), str(tmp_path / name), None) for name in ("deep", "flat"))
    assert np.array_equal(deep.frames, flat.frames) and np.array_equal(deep.masks, flat.masks)
    assert 0.49 < deep.masks.mean() < 0.51
    square = np.zeros((32, 48), np.uint8)
    square[8:24, 16:32] = 255
    for colour in (0, 255):
        rgba = np.dstack([np.full((32, 48, 3), colour, np.uint8), square])
        Image.fromarray(rgba).save(tmp_path / "clear/0.png")
        assert np.array_equal(read_truth(None, str(tmp_path / "clear"), None).masks[0], square > 0)
    Image.fromarray(square).save(tmp_path / "jpeg/00001.jpg", quality=95)
    assert np.array_equal(read_truth(None, str(tmp_path / "jpeg"), None).masks[0], square > 0)


def test_blend_masks_stand_for_the_region(tmp_path):
    make_run(tmp_path)
    masks = np.zeros((4, 8, 12), np.uint8)
    masks[:, 2:4, 2:4] = 1
    later = np.zeros_like(masks)
    later[:, 2:4, 4:6] = 1
    small = np.ones((4, 4, 6), np.uint8)
    tensors = {"mask.0.8x12.000": masks, "mask.0.8x12.001": later, "mask.0.4x6.000": small, "mask.1.8x12.000": small}
    save_file(tensors, tmp_path / "latents.safetensors")
    union = measured.blend_masks(tmp_path, 0, SHAPE[:3])
    assert union.shape == SHAPE[:3] and union[:, 8:16, 8:24].all() and union.sum() == 4 * 8 * 16
    row = measured.measure_folder(tmp_path)[0]
    assert row["masks"] == "blend" and row["psnr_background"] == 100 and row["flow"] == "estimated"


class Towers:
    """Stands for CLIP: a picture's feature is whether it is bright; the target's is 'bright'."""

    name = "by hand"

    def images(self, frames):
        bright = torch.tensor([float(f.mean() > 110) for f in frames])
        return torch.stack([bright, 1 - bright], 1)

    def texts(self, prompts):
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def patches(self, frames):
        return [torch.ones(len(frames), 1, 1)]


def test_clip_metrics_of_a_clip():
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    frames[:3] = 200  # three of four look like the target, one of three neighbours differs
    row = measure(frames, frames, ("dark", "bright"), Towers())
    assert (
        row["frame_acc"] == pytest.approx(0.75)
        and row["tem_con"] == pytest.approx(2 / 3)
        and row["text_score"] == pytest.approx(0.75)
    )
    assert row["patch_distance"] == 0


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "RESULTS"),
        (["{}/nowhere"], "has no run.json"),
        (["{}/running"], "has not finished"),
        (["{}/run", "--truth", "{}/empty"], "no pictures"),
        (["{}/run", "--flow", "{}/run/run.json"], "cannot be read"),
        (["{}/run", "--clip-model", "{}/nowhere"], "does not exist"),
        (["{}/run", "--masks", "{}/wrong"], "expected one of the clip's size"),
        (["{}/run", "--clipp", "x"], "unrecognized"),
        (["{}/run", "--out", "{}/run/run.json/x"], "is a file, expected a folder"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, said):
    make_run(tmp_path / "run")
    make_run(tmp_path / "running", status="running")
    (tmp_path / "empty").mkdir()
    write_pngs(tmp_path / "wrong", np.zeros((2, 8, 8), np.uint8))
    assert evaluate.main([a.format(tmp_path) for a in argv]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--truth", "short"], r"truth: got \(2, 32, 48, 3\), expected one of the clip's size for each frame, \(4, 32"),
        (["--truth", "small"], r"truth: got \(4, 16, 48, 3\)"),
        (["--truth", "nope"], r"truth: nope does not exist"),
        (["--masks", "nope"], r"masks: nope does not exist"),
        (["--masks", "letter.txt"], r"masks: letter.txt is a file. Expected a folder"),
        (["--truth", "run"], r"truth: run has no pictures"),
        (["--truth", "mixed"], r"truth: the images of mixed differ in size"),
        (["--truth", ""], r"truth: got an empty path"),
        (["--flow", "~nosuchuser/flow.npy"], r"flow: ~nosuchuser is no user of this machine"),
        (["--masks", "short"], r"masks: got \(2, 32, 48\)"),
        (["--overwrite", "--out", "run/run"], r"out: run/run.json says what the results there are of. Pass another"),
        (["--out", "letter.txt/rows"], r"out: letter.txt is a file, expected a folder"),
        (["--clip-model", ""], r"clip: got an empty path"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_measured_is_one_line_and_costs_nothing(argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, edited = make_run(tmp_path / "run")
    write_pngs(tmp_path / "short", edited[:2])
    write_pngs(tmp_path / "small", edited[:, :16])
    write_pngs(tmp_path / "mixed", edited)
    write_png(tmp_path / "mixed/00001.png", edited[1, :16])
    (tmp_path / "letter.txt").write_text("mine")
    before = (tmp_path / "run/run.json").read_bytes()
    assert evaluate.main(["run", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(said, err), err
    assert (tmp_path / "run/run.json").read_bytes() == before and not (tmp_path / "run/run.csv").exists()
