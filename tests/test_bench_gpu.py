"""`bench.gpu` without a GPU: every stage in small, so that it does not fail on the day for a reason that is here."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from bench import gpu  # noqa: E402

# the machine to expect has none of these
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "diffusers", "xformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from bench import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


def dry(root, out, *more):
    command = [sys.executable, "-c", BARE, "--dry", "--out", str(out), *more]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


def test_a_stage_in_small_without_av_and_diffusers(root, tmp_path):
    done = dry(root, tmp_path, "--only", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "4-layers.json").read_text())
    assert {row["way"] for row in rows} == {"this", "torch"} and all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_every_stage_in_small(root, tmp_path):
    done = dry(root, tmp_path)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.json"))) == len(gpu.STAGES)
    checked = json.loads((tmp_path / "2-check.json").read_text())
    assert len(checked) > 20 and all(row["right"] for row in checked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "--dry runs every stage" in capsys.readouterr().err


def test_a_wrong_kernel_ends_the_run(monkeypatch, tmp_path, capsys):
    ran = []
    stages = (lambda run: [{"case": "self", "right": False}], lambda run: ran.append(1) or [])
    for stage in stages:
        stage.__name__ = "check"
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and not ran
    assert "1 wrong, first self" in capsys.readouterr().out


def test_predictions_stand_beside_measurements():
    rows = [{"site": "D40 N4096", "way": "cross, this", "ms": 0.05}, {"site": "D40 N4096", "way": "other", "ms": 1.0}]
    gpu.predicted(3, rows)
    assert rows[0]["predicted"] == gpu.PREDICTIONS[3, "D40 N4096", "cross, this"] and "predicted" not in rows[1]
