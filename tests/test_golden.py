"""Golden runs: through the command line, the released code's numbers on every case of ../shared/golden."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from fz.run import main

CASES = ["01_style", "02_shape", "05_tuned", "07_single_frame", "08_plain", "10_sc_index"]
LARGE = ["09_shape256"]


def read_golden(golden, case):
    """Tensors and settings of a golden file; latents there are (4, F, h, w), here (F, 4, h, w)."""
    with safe_open(golden / f"{case}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        meta = {key: json.loads(value) if value[:1] in "{[" else value for key, value in file.metadata().items()}
    return tensors, meta


def config_file(golden, meta, tmp_path):
    """The released YAML that the golden run was made with."""
    config = {
        "pretrained_model_path": str(golden / meta["model_path"]),
        "dataset_config": {**meta["dataset_config"], "path": str(golden / meta["dataset_config"]["path"])},
        "editing_config": meta["editing_config"],
        "model_config": meta["model_config"],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def relative(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def run_case(golden, case, tmp_path, *flags):
    tensors, meta = read_golden(golden, case)
    out = tmp_path / "out"
    code = main(
        [
            "--config",
            str(config_file(golden, meta, tmp_path)),
            "--save-latents",
            "--out",
            str(out),
            "--device",
            "cpu",
            "--cache",
            str(tmp_path.parent / "cache"),
            *flags,
        ]
    )
    assert code == 0
    return tensors, load_file(out / "latents.safetensors")


def check_case(tensors, ours):
    frames_first = {k: tensors[k].transpose(-4, -3) for k in ("z0", "inv_latents", "edit_latents")}
    assert relative(ours["z0"], frames_first["z0"]) < 1e-5
    for step, theirs in enumerate(frames_first["inv_latents"]):
        assert relative(ours[f"inverted.{step:03d}"], theirs) < 1e-4, f"inverted latent {step}"
    edited = frames_first["edit_latents"]
    assert sum(k.startswith("edited.0.") for k in ours) == len(edited)
    assert relative(ours["edited.0.001"], edited[0]) < 2e-4
    assert relative(ours[f"edited.0.{len(edited):03d}"], edited[-1]) < 5e-3
    masks = {k: v for k, v in ours.items() if k.startswith("mask.")}
    theirs = {k: v for k, v in tensors.items() if k.startswith("self_mask_") and not k.endswith("_steps")}
    assert len(masks) == sum(len(v) for v in theirs.values())
    for key, value in theirs.items():
        side = int(key.removeprefix("self_mask_"))
        for step, mask in zip(tensors[f"{key}_steps"].tolist(), value, strict=True):
            assert torch.equal(masks[f"mask.0.{side}x{side}.{step:03d}"], mask), f"{key} at step {step}"


@pytest.mark.parametrize("case", CASES)
def test_golden_run(golden, case, tmp_path):
    check_case(*run_case(golden, case, tmp_path, "--store", "memory"))


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "02_shape" else pytest.mark.slow) for c in CASES])
def test_golden_run_that_recomputes(golden, case, tmp_path):
    """All stores give the same bits (test_edit.py): one case stands for the others by default."""
    check_case(*run_case(golden, case, tmp_path, "--store", "recompute"))


@pytest.mark.parametrize("case", LARGE)
def test_golden_run_at_256(golden, case, tmp_path):
    check_case(*run_case(golden, case, tmp_path))


@pytest.mark.parametrize(("kernels", "case"), [("reference", "02_shape"), ("torch", "07_single_frame")])
def test_golden_run_with_forced_kernels(golden, kernels, case, tmp_path, monkeypatch):
    monkeypatch.setenv("FZ_KERNELS", kernels)
    check_case(*run_case(golden, case, tmp_path, "--cache", "none"))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["versions"]["kernels"] == kernels


@pytest.mark.slow
def test_golden_run_with_interpreted_triton(golden, tmp_path):
    """A single frame by Triton's interpreter; in a process of its own, as triton decides at import whether it
    interprets.
    """
    pytest.importorskip("triton")
    tensors, meta = read_golden(golden, "07_single_frame")
    command = [sys.executable, "-m", "fz.run", "--config", str(config_file(golden, meta, tmp_path)), "--device", "cpu"]
    command += ["--save-latents", "--out", str(tmp_path / "out"), "--cache", "none"]
    env = {**os.environ, "FZ_KERNELS": "triton", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["versions"]["kernels"] == "triton"
    check_case(tensors, load_file(tmp_path / "out" / "latents.safetensors"))
