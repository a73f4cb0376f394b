"""The bench of edit steps: what it counts without a clip. Nothing here says how fast anything is."""

import sys

import pytest
import torch

from bench import edit as bench
from bench import edit_times, whole
from fz.model.deep import Reuse
from fz.model.unet import UNet, UNetConfig


@pytest.fixture(scope="module")
def sd():
    with torch.device("meta"):
        return UNet(UNetConfig())


def test_flop_of_stable_diffusion(sd):
    """About 0.8 TFLOP at 64 x 64 with own keys, as diffusers' model counts; the second frame's keys add what attention
    costs once more.
    """
    forward = edit_times.flop_of_forward(sd, 64)
    assert 0.8e12 < forward < 1.1e12
    assert 0.5 < edit_times.flop_of_source_pass(sd, 64) / forward < 0.9


def test_the_cost_model_has_every_length_and_mode(sd, capsys):
    edit_times.cost_model()
    tables = capsys.readouterr().out.split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert [line.split()[0] for line in table.splitlines()[2:]] == ["8", "16", "32", "64"]
    # whole chunks: the same memory for 32 frames as for 64
    assert tables[2].splitlines()[-1].split()[-1] == tables[2].splitlines()[-2].split()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [(), ("--chunk", "2"), ("--chunk", "2", "--per-frame-norm", "--vae"), ("--only", "recompute")], ids=str
)
def test_the_command_prints_a_share_of_the_peak(flags, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench.edit", "--small", "--size", "64", "--frames", "3", "--rounds", "1", "--threads", "1", *flags],
    )
    bench.main()
    out = capsys.readouterr().out
    assert (
        "GFLOP/s" in out
        and ("encode" in out) == ("--vae" in flags)
        and ("frames at a time" in out) == ("--chunk" in flags)
    )
    assert ("with maps" in out) == ("--only" not in flags)


@pytest.mark.slow
def test_a_whole_edit_is_summed_of_its_steps(capsys):
    line = ["--small", "--size", "64", "--frames", "2", "--rounds", "1", "--threads", "1", "--fast"]
    assert bench.main(line) == 0
    out = capsys.readouterr().out
    assert "fast: edit step, one branch, shallow" in out and "x as fast" in out


def test_the_steps_of_fast_are_those_of_its_schedule():
    """18 steps: whole ones are 0, 2, … 16 and 17, of which those before 9 are guided with what follows them."""
    counts = {}

    class Taken(dict):
        def __missing__(self, name):
            counts[name] = counts.get(name, 0) + 1
            return 1.0

    assert whole.seconds_of_fast(Taken(), Reuse(2), 18) == 36
    assert counts["fast: inversion step"] == 10 and counts["fast: inversion step, shallow"] == 8
    assert counts["fast: edit step"] == 5 and counts["fast: edit step, shallow"] == 5
    assert counts["fast: edit step, one branch"] == 5 and counts["fast: edit step, one branch, shallow"] == 3
