"""`bench.gpu` without a GPU: every stage in small, so that it does not fail on the day for a reason that is here."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from bench import gpu, gpu_stages  # noqa: E402

# the machine to expect has none of these
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "diffusers", "xformers", "imageio", "PIL"):
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
    monkeypatch.setattr(gpu_stages, "STAGES", stages)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1 and not ran
    assert "1 wrong, first self" in capsys.readouterr().out


def test_predictions_stand_beside_measurements():
    rows = [{"site": "D40 N4096", "way": "cross, this", "ms": 0.05}, {"site": "D40 N4096", "way": "other", "ms": 1.0}]
    gpu_stages.predicted(3, rows)
    assert rows[0]["predicted"] == gpu_stages.PREDICTIONS[3, "D40 N4096", "cross, this"] and "predicted" not in rows[1]


def test_measurements_decide():
    def rows(site, **ms):
        return [
            {"site": site, "way": way.replace("_", ", ").replace("THIS", "this (table)"), "ms": t}
            for way, t in ms.items()
        ]

    found = {
        3: rows(
            "D40 N4096", plain_THIS=2.0, plain_CUDNN=1.0, fused_THIS=1.0, fused_two=3.0, cross_this=3.0, cross_SDPA=2.0
        ),
        4: rows("norm 8x8", this=1.0, torch=3.5),
        5: rows("512, 8 frames", edit_graph=9.0) + [{"site": "512, 8 frames", "way": "edit, in a run", "ms": 10.0}],
    }
    assert gpu_stages.decisions(found) == [
        "D40 N4096 plain: plain, this (table), 0.50 x as fast as plain, CUDNN",
        "D40 N4096 plain: take plain, CUDNN",
        "D40 N4096 fused: fused, this (table), 3.00 x as fast as fused, two",
        "D40 N4096 cross, plain: take SDPA",
        "the norm kernel saves 2.500 ms in one norm of each level; from 2 ms a step on it stays",
        "512, 8 frames: graphs stay, 1.11 x as fast",
    ]
    assert gpu_stages.decisions({}) and gpu_stages.decisions({3: rows("D40 N4096", plain_THIS=2.0)})
