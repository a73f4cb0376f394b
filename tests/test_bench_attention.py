"""The attention bench: its tables by hand, its gate, its rows. Tiny sizes; nothing here says how fast anything is."""

import csv

import pytest
import torch

from bench import attention, attention_times, attention_ways
from bench import roofline_page as roofline
from bench.sites import BenchSite, sites
from fz import kernels
from fz.errors import FzError
from fz.kernels import onednn_tiles


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.delenv("FZ_KERNELS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_sites_are_those_of_stable_diffusion():
    found = {(s.kind, s.side): s for s in sites(256, 8)}
    # 2 blocks of a down level, 3 of an up level, 1 in the middle
    assert {key: (s.stride, s.heads, s.d, s.layers) for key, s in found.items()} == {
        (kind, side): (stride, 8, d, layers)
        for kind in ("self", "cross")
        for side, stride, d, layers in ((32, 1, 40, 5), (16, 2, 80, 5), (8, 4, 160, 5), (4, 8, 160, 1))
    }
    assert [s.fused for s in found.values()] == [False, True, True, True] * 2
    assert found["self", 16].tokens == 256 and found["self", 16].keys == 512 and found["cross", 16].keys == 77


@pytest.mark.parametrize(("size", "frames", "anchors"), [(100, 8, 2), (0, 8, 2), (256, 2, 3), (256, 8, 0)])
def test_sites_that_cannot_be(size, frames, anchors):
    with pytest.raises(FzError, match="expected"):
        sites(size, frames, anchors)


# 2 frames of 4 tokens, 2 heads of 8, both frames anchors: operands of 128 elements, maps of 2 · 2 · 4 · 8 = 128
HAND = BenchSite("self", 2, 2, 2, 8, 2, 2, 1)


def test_costs_by_hand():
    assert (HAND.operand, HAND.map, HAND.operations) == (128, 128, 4096)
    cost = {way: roofline.total(roofline.stages(HAND, way)) for way in roofline.WAYS}
    # maps: three products of 2048; two maps made, each read and written by a softmax, blended (3), multiplied (1): 10
    # maps of 256 bytes; operands: keys, edit's and source's, and values of two anchors read and written (6 · 512), then
    # q + keys twice, values, result
    assert cost["maps"].operations == 3 * 2048
    assert cost["maps"].exponentials == 2 * 128
    assert cost["maps"].bytes == 10 * 256 + 6 * 512 + 2 * (256 + 512) + 512 + 256
    assert cost["two attentions + blend"].operations == 2 * 4096
    assert cost["two attentions + blend"].bytes == 6 * 512 + 2 * (256 + 512 + 512 + 256) + 3 * 256
    assert cost["this, mixed mask"] == roofline.KernelCost(4096, 128, 5 * 256)
    assert cost["this, no mask"] == roofline.KernelCost(4096, 128, 4 * 256)


def test_floors_by_hand():
    chip = roofline.Chip("slow", 80, 1000.0, 100.0, 1, 1.0, "here")
    assert chip.exponentials == 16
    assert roofline.KernelCost(5000, 16, 200).floor(chip) == 5 and roofline.KernelCost(1000, 160, 200).floor(chip) == 10
    assert roofline.KernelCost(1000, 16, 1100).floor(chip) == 11
    # operations 4.096 s, exponentials 8 s, bytes 12.8 and 10.24 s
    assert (
        roofline.floor(HAND, "this, mixed mask", chip) == 12.8
        and roofline.limit(HAND, "this, mixed mask", chip) == "memory"
    )
    assert roofline.floor(HAND, "this, no mask", chip) == 10.24
    faster = roofline.Chip("faster memory", 80, 1000.0, 1e6, 1, 1.0, "here")
    assert roofline.floor(HAND, "this, no mask", faster) == 8 and roofline.limit(HAND, "this, no mask", faster) == "exp"


def test_datasheets_agree_with_clocks():
    """fp16 operations a clock and multiprocessor of each architecture, and exponentials, 16 a clock."""
    for chip, per_clock in zip(roofline.CHIPS, (2048, 512, 512, 4096), strict=True):
        assert chip.matrix == pytest.approx(per_clock * chip.multiprocessors * chip.clock, rel=0.01)


def test_the_page_has_every_site(monkeypatch):
    monkeypatch.setattr(roofline, "compiled_table", lambda capability: f"binaries of {capability}")
    page = roofline.page(512, 8, 2)
    assert all(f"| {site.name} | {way} |" in page for site in sites(512, 8) for way in roofline.WAYS)
    assert "binaries of 90" in page and "binaries of 80" in page and "804" in page


def args(*more):
    return ["--size", "64", "--frames", "2", "--rounds", "1", "--threads", "1", *more]


def test_it_runs_and_appends_rows(tmp_path, capsys):
    path = tmp_path / "attention.csv"
    assert attention.main(args("--csv", str(path))) == 0
    assert attention.main(args("--csv", str(path), "--dtype", "bf16")) == 0
    shown = capsys.readouterr().out
    assert "correct: no error" in shown and "self 4x4 D80" in shown and "x as fast as maps" in shown
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert len(rows) == 2 * (4 * 6 + 4 * 3)
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"} and all(row["commit"] and row["machine"] for row in rows)
    assert all(float(row["p50 ms"]) > 0 and float(row["peak MB"]) >= float(row["largest MB"]) > 0 for row in rows)
    work = next(row for row in rows if row["site"] == "self 8x8 D40" and row["way"] == "this")
    # 4 · 2 frames · 8 heads · 64 queries · 128 keys · 40
    assert float(work["GFLOP/s"]) == pytest.approx(
        4 * 2 * 8 * 64 * 128 * 40 / float(work["p50 ms"]) / 1e6, rel=0.02, abs=0.06
    )


@pytest.mark.parametrize("name", ("reference", "torch"))
def test_the_version_that_is_asked_for_is_measured(monkeypatch, name):
    monkeypatch.setenv("FZ_KERNELS", name)
    attention_ways.self_ways(attention_ways.self_case(HAND, torch.float32, torch.device("cpu")))["this"]()
    assert kernels.which() == name


BROKEN = {
    "a row": lambda out: out.index_fill(2, torch.tensor(0), 0.0),
    "slightly": lambda out: out * 1.00001,
    "not a number": lambda out: out.index_fill(2, torch.tensor(0), float("nan")),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", ("self", "cross"))
def test_nothing_is_timed_when_a_version_is_wrong(monkeypatch, capsys, how, kind):
    real = getattr(kernels, f"{kind}_attention")

    def broken(*a, **k):
        out = real(*a, **k)
        return BROKEN[how](out) if kind == "self" else (BROKEN[how](out[0]), out[1])

    monkeypatch.setattr(kernels, f"{kind}_attention", broken)
    monkeypatch.setattr(attention_times, "measure", lambda *a: pytest.fail("timed"))
    assert attention.main(args()) == 2
    assert f"fz: {kind} 8x8 D40: 'this' has error" in capsys.readouterr().err


def test_what_is_timed_is_what_is_checked(monkeypatch):
    """oneDNN's tiles take large sites only: the check meets them at the size that is timed."""
    real = onednn_tiles.product
    monkeypatch.setattr(onednn_tiles, "prefers_onednn", lambda: True)
    monkeypatch.setattr(onednn_tiles, "vector_bits", lambda: 512)
    cross = [s for s in sites(256, 2) if (s.kind, s.side) == ("cross", 16)]
    attention_times.check(cross, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(onednn_tiles, "product", lambda x, weight: real(x, weight) * 1.001)
    attention_times.check(cross, torch.float32, torch.device("cpu"), most_tokens=50)
    with pytest.raises(FzError, match="'this' has error"):
        attention_times.check(cross, torch.float32, torch.device("cpu"))


def test_nothing_is_timed_when_a_rival_is_wrong(monkeypatch, capsys):
    real = attention_ways.self_two
    monkeypatch.setattr(attention_ways, "self_two", lambda x: real(x) + 1e-3)
    assert attention.main(args()) == 2
    assert "'two attentions + blend' has error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad", [("--size", "100"), ("--anchors", "9"), ("--rounds", "0"), ("--dtype", "fp8"), ("--siz",)]
)
def test_bad_arguments(bad, capsys):
    assert attention.main([*args(), *bad]) == 2
    assert "Traceback" not in capsys.readouterr().err
