"""How soon a mistake is answered: in less than 1.5 s of process time, before any weights are read."""

import os
import subprocess
import sys

import pytest

LIMIT = 1.5  # seconds of user and system time of a whole process

FLAGS = {
    "unknown flag": ["--guidence", "7"],
    "number": ["--steps", "ten"],
    "choice": ["--edit", "shapes"],
    "setting": ["--strength", "0"],
    "word": ["--reweight", "watercolor=10"],
    "sweep": ["--sweep", "threshold=0:1"],
    "YAML that is none": ["--config", "broken.yaml"],
    "YAML of unknown keys": ["--config", "unknown.yaml"],
    "YAML absent": ["--config", "none.yaml"],
    "clip absent": ["--video", "none.mp4"],
    "clip of text": ["--video", "text.mp4"],
    "clip without frames": ["--video", "empty"],
    "clip that is cut": ["--video", "cut.png"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, root):
    """A folder with mistakes in it, and a checkpoint whose weights nobody could read without saying so."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "broken.yaml").write_text("a: [1\nb: }")
    (folder / "unknown.yaml").write_text("dataset_config: {path: clip, promt: a car}\n")
    (folder / "text.mp4").write_text("frames")
    (folder / "empty").mkdir()
    example = root / "weights/mini/example/00000.png"
    (folder / "cut.png").write_bytes(example.read_bytes()[:500])
    for part in ("unet", "vae", "text_encoder"):
        (folder / "model" / part).mkdir(parents=True)
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        (folder / "model" / part / f"{name}.safetensors").write_bytes(b"no weights")
        (folder / "model" / part / "config.json").write_bytes(
            (root / "weights/mini" / part / "config.json").read_bytes()
        )
    (folder / "model/tokenizer").symlink_to(root / "weights/mini/tokenizer")
    return folder


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures a process by wait4")
@pytest.mark.parametrize("case", FLAGS)
def test_a_mistake_is_answered_before_weights_are_read(case, place, root):
    flags = {"--checkpoint": "model", "--video": str(root / "weights/mini/example"), "--source": "a red car",
             "--target": "a blue car", "--out": case, "--cache": "none"}  # fmt: skip
    if FLAGS[case][0] == "--video":
        del flags["--video"]
    argv = [part for flag in flags.items() for part in flag] + FLAGS[case]
    if FLAGS[case][0] == "--config":
        argv = FLAGS[case]
    # a process of its own, whose time is its own
    process = subprocess.Popen(
        [sys.executable, "-m", "fz.run", *argv],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2 and len(said.splitlines()) == 1, said
    assert "no weights" not in said and "safetensors" not in said, said
    assert not (place / case).exists()
    assert usage.ru_utime + usage.ru_stime < LIMIT, said
