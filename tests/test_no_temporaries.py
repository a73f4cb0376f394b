"""Fused attention on a CPU makes no tensor larger than its operands, for any frame index and mask: by operator."""

import pytest
import torch

from bench.attention_ways import disc
from bench.sites import sites
from bench.temporaries import Made, temporaries
from fz.frames import FrameIndex
from fz.kernels import onednn_tiles, reference, torch_ops
from fz.model.layers import Site

INDICES = ((0, "mid"), (-1, "first"), ("mid",), (0,))
MASKS = ("plain", "no mask", "all", "mixed")


def test_what_is_made_is_counted():
    x = torch.ones(4, 8)

    def run():
        y = x + 1  # 128 bytes
        y.mul_(2)  # in place
        z = torch.cat([y, y, x])  # 384 beside y's 128
        del y
        return z.view(-1)[:3] @ torch.ones(3)  # 12 and 4 beside z

    counted = temporaries(run)
    assert [made.bytes for made in counted.made] == [128, 384, 12, 4]
    assert counted.largest() == Made("aten.cat.default", 384) and counted.peak == 512


SELF = [s for s in sites(256, 8) if s.kind == "self"]
# the deepest sites are too small for oneDNN's tiles
WAYS = [(s, onednn) for s in SELF for onednn in (True, False) if not onednn or s.side >= 16]


@pytest.mark.parametrize("pattern", MASKS)
@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize(
    ("site", "onednn"), WAYS, ids=[f"{s.name} {'onednn' if onednn else 'sdpa'}" for s, onednn in WAYS]
)
def test_self_attention(monkeypatch, site, index, pattern, onednn):
    monkeypatch.setattr(onednn_tiles, "prefers_onednn", lambda: onednn)
    monkeypatch.setattr(onednn_tiles, "vector_bits", lambda: 512)
    # two heads of eight: every tensor is a quarter of the real one, tiles and all
    heads, f = 2, site.frames
    monkeypatch.setattr(onednn_tiles, "TILE", onednn_tiles.TILE // 4)
    q, k, v = torch.randn(2, f, site.tokens, 3, heads, site.d).unbind(3)
    frames = FrameIndex(index).table(Site("x", "self", site.stride, site.channels), f)
    options = {}
    if pattern != "plain":
        options = {"q_src": v[0], "k_src": q[0], "mask": None}
    if pattern in ("all", "mixed"):
        options["mask"] = disc(f, site.tokens) | (pattern == "all")
    counted = temporaries(lambda: torch_ops.self_attention(q, k, v, frames, **options))
    assert counted.largest().bytes <= v.numel() * v.element_size(), counted.largest()
    # the result, and a branch's rows, keys and values at a time
    assert counted.peak <= 2.5 * v.numel() * v.element_size()


@pytest.mark.parametrize("onednn", (True, False), ids=("onednn", "sdpa"))
@pytest.mark.parametrize("site", [s for s in sites(256, 8) if s.kind == "cross" and s.side > 4], ids=lambda s: s.name)
def test_cross_attention(monkeypatch, site, onednn):
    monkeypatch.setattr(onednn_tiles, "prefers_onednn", lambda: onednn)
    monkeypatch.setattr(onednn_tiles, "vector_bits", lambda: 512)
    q = torch.randn(2, site.frames, site.tokens, 2, site.d)
    k, v = torch.randn(2, 2, 77, 2, site.d)
    counted = temporaries(lambda: torch_ops.cross_attention(q, k, v, q_src=q[0], k_src=k[0], v_src=v[0]))
    assert counted.largest().bytes <= q.numel() * q.element_size(), counted.largest()


def test_maps_would_be_seen():
    q, k, v = torch.randn(3, 1, 2, 256, 2, 8)
    counted = temporaries(lambda: reference.self_attention(q, k, v, torch.tensor([[0, 1], [1, 0]])))
    assert counted.largest().bytes == 2 * 256 * 512 * 4 > v.numel() * v.element_size()
