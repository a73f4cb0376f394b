"""The fast ways on a CPU compute what the plain layers do, within the budget they were given, and step aside for
gradients.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fz.kernels import gemm, int8, onednn_tiles, torch_ops
from fz.kernels.winograd import Winograd
from fz.model import fast_cpu, reduced_cpu
from fz.model.fast_cpu import PackedGEGLU, PackedLinear
from fz.model.layers import GEGLU, Conv3x3, TextContext
from fz.model.reduced_cpu import REDUCED, Int8Conv3x3, PackedConv3x3
from fz.model.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64),
    heads=(4, 4, 4),
    cross_attention_dim=48,
    norm_num_groups=8,
    down_attention=(True, True, False),
    up_attention=(False, True, True),
)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(CONFIG).eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("m, bound", [(2, 2e-6), (4, 8e-6)])
@pytest.mark.parametrize("h, w", [(8, 8), (4, 4), (6, 10), (5, 7), (1, 3), (16, 12)])
def test_winograd_is_the_convolution(monkeypatch, m, bound, h, w, onednn):
    if onednn and not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    monkeypatch.setattr("fz.kernels.winograd.prefers_onednn", lambda: onednn)
    torch.manual_seed(0)
    x = torch.randn(3, 24, h, w).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(40, 24, 3, 3), torch.randn(40)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    out = Winograd(weight, bias, m)(x)
    assert out.shape == expected.shape
    assert ((out - expected).norm() / expected.norm()).item() < bound


def test_packed_layers_are_the_layers():
    if not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 48)
    with torch.no_grad():
        for layer in (nn.Linear(48, 96), nn.Linear(48, 96, bias=False), GEGLU(48, 192)):
            plain, packed = layer(x), (PackedGEGLU if isinstance(layer, GEGLU) else PackedLinear)(layer, rows=60)
            torch.testing.assert_close(packed(x), plain, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(packed(x[1:]), plain[1:], rtol=1e-5, atol=1e-5)


@pytest.fixture
def narrow_too(monkeypatch):
    """Winograd takes the convolutions of a test's model, which are narrower than it pays for."""
    monkeypatch.setattr(fast_cpu, "LEAST_WINOGRAD", 32)


@pytest.mark.parametrize("conv", ["direct", "auto"])
def test_a_prepared_unet_gives_the_same_noise(unet, narrow_too, conv):
    z, text = torch.randn(2, 3, 4, 16, 24), TextContext(torch.randn(2, 77, 48))
    with torch.no_grad():
        plain = unet(z, 500, text)
        fast_unet, line = fast_cpu.prepare(unet, (16, 24), 3, conv)
        fast = fast_unet(z, 500, text)
        assert ((fast - plain).norm() / plain.norm()).item() < 2e-5
        assert torch.equal(unet(z, 500, TextContext(text.embedding)), plain)
    assert fast_cpu.signature(unet) == [] and bool(fast_cpu.signature(fast_unet)) == (fast_unet is not unet)
    assert list(fast_unet.state_dict()) == list(unet.state_dict())
    assert all(a is b for a, b in zip(fast_unet.parameters(), unet.parameters(), strict=True))
    assert ("Winograd" in line) == (conv == "auto")


def test_winograd_spends_no_more_than_its_budget(unet, narrow_too):
    def spent(budget):
        chosen = fast_cpu.choose(fast_cpu.convolutions(unet, (32, 32)), 8, budget)
        return sum(site.bytes(m) for site, m in chosen), len(chosen)

    everything, sites = spent(10**12)
    assert (
        sites == sum(isinstance(c, Conv3x3) and c.stride == (1, 1) for c in unet.modules()) - 2
    )  # the first and last are too narrow
    half, fewer = spent(everything // 2)
    assert 0 < half <= everything // 2 and 0 < fewer
    assert spent(0) == (0, 0)


def test_sizes_of_the_convolutions_are_those_of_the_forward_pass(unet, narrow_too):
    seen = {}
    for name, module in unet.named_modules():
        if isinstance(module, Conv3x3):
            module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(m, out.shape[-2:]))
    with torch.no_grad():
        unet(torch.randn(1, 2, 4, 16, 24), 1, TextContext(torch.randn(1, 77, 48)))
    sites = fast_cpu.convolutions(unet, (16, 24))
    assert sites
    for site in sites:
        assert seen[site.conv] == (site.h, site.w)


def test_gradients_take_the_plain_layers(unet):
    z, embedding = torch.randn(1, 2, 4, 16, 16), torch.randn(1, 77, 48)

    def gradient(model):
        unet.zero_grad()
        model(z, 7, TextContext(embedding)).square().mean().backward()
        return unet.mid_block.resnets[0].conv1.weight.grad.clone()

    plain = gradient(unet)
    fast, _ = fast_cpu.prepare(unet, (16, 16), 2)
    assert torch.equal(gradient(fast), plain)


@pytest.mark.skipif(not int8.has_int8(), reason="this CPU or PyTorch has no products of eight bits")
@pytest.mark.parametrize("then", ["none", "gelu"])
@torch.no_grad()
def test_eight_bit_products_are_the_products(then):
    """Within what 8 bits of weights and of activations leave: each step is 1 / 255 of the range."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 30, 48) * 2 + 0.3, torch.randn(96, 48), torch.randn(96)
    for b in (bias, None):
        exact = F.linear(x.double(), weight.double(), b if b is None else b.double())
        exact = F.gelu(exact) if then == "gelu" else exact
        out = int8.Linear8(weight, b, 60)(x, then)
        assert 1e-3 < ((out - exact).norm() / exact.norm()).item() < 1.5e-2
        assert int8.Linear8(weight, b, 60)(x[:0], then).shape == (0, 30, 96)


@pytest.mark.skipif(not int8.has_int8(), reason="this CPU or PyTorch has no products of eight bits")
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_eight_bit_convolutions_are_the_convolution_and_padding_is_exactly_nothing(stride):
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 24, 3, 3), torch.randn(40)
    # far from zero: a border that is padded with anything else than zero shows
    x = (torch.randn(3, 24, 9, 10) + 5).contiguous(memory_format=torch.channels_last)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding=1)
    out = int8.Conv8(weight, bias, stride)(x)
    error = (out - exact).abs().amax((0, 1)) / exact.abs().max()
    assert out.is_contiguous(memory_format=torch.channels_last) and error.max().item() < 2e-2
    assert torch.isnan(int8.Conv8(weight, bias, stride)(torch.full_like(x, float("inf")))).all()


@pytest.mark.parametrize("way, bound", [("bfloat16", 2e-2), ("int8", 5e-2)])
@torch.no_grad()
def test_fewer_bits_stay_near_float32(unet, way, bound, monkeypatch):
    monkeypatch.setattr(reduced_cpu, "LEAST_INT8", 32)
    can = gemm.multiplies_bfloat16() if way == "bfloat16" else int8.has_int8()
    if not can:
        pytest.skip("this CPU has no such products")
    z, text = torch.randn(2, 3, 4, 16, 24), torch.randn(2, 77, 48)
    exact = unet(z, 500, TextContext(text))
    plain = copy.deepcopy(unet).bfloat16() if way == "bfloat16" else unet
    fast, line = fast_cpu.prepare(plain, (16, 24), 3, weights="int8" if way == "int8" else "same")
    out = fast(z, 500, TextContext(text))
    assert out.dtype == torch.float32 and 1e-4 < ((out - exact).norm() / exact.norm()).item() < bound
    assert way in line and torch.equal(out, fast(z, 500, TextContext(text)))
    made = [layer for layer in fast.modules() if isinstance(layer, REDUCED)]
    kind = Int8Conv3x3 if way == "int8" else PackedConv3x3
    wide = [c for c in unet.modules() if isinstance(c, Conv3x3) and min(c.in_channels, c.out_channels) >= 32]
    assert sum(isinstance(layer, kind) for layer in made) == len(wide)
    assert not [n for n, m in fast.named_modules() if isinstance(m, REDUCED) and ("to_out" in n or "time" in n)]
    assert list(fast.state_dict()) == list(unet.state_dict()) and fast_cpu.signature(fast) != fast_cpu.signature(unet)


def test_where_a_cpu_has_no_such_products_it_is_said_and_float32(unet, monkeypatch):
    plain = fast_cpu.signature(fast_cpu.prepare(unet, (16, 24), 3)[0])
    monkeypatch.setattr(fast_cpu, "has_int8", lambda: False)
    monkeypatch.setattr(fast_cpu, "multiplies_bfloat16", lambda: False)
    fast, line = fast_cpu.prepare(unet, (16, 24), 3, weights="int8")
    assert "int8 is left out, this CPU" in line and fast_cpu.signature(fast) == plain
    half = copy.deepcopy(unet).bfloat16()
    fast, line = fast_cpu.prepare(half, (16, 24), 3, weights="int8")
    assert fast is half and "float32 is faster" in line and "left out" in line


def test_narrow_layers_do_not_gain_from_eight_bits_and_stay(unet):
    plain = fast_cpu.prepare(unet, (16, 24), 3)[0]
    fast, line = fast_cpu.prepare(unet, (16, 24), 3, weights="int8")
    assert "int8 is left out" in line and fast_cpu.signature(fast) == fast_cpu.signature(plain)


def test_tiles_read_the_anchors_of_each_frame(monkeypatch):
    """Keys and values that were laid for a frame stay for the next one where it has the same anchors, only there."""
    if not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 48, 2, 40)
    table = torch.tensor([[0, 1], [2, 1], [2, 3], [3, 3]])
    exact = torch_ops.self_attention(*(x.double() for x in (q, k, v)), table)
    monkeypatch.setattr(onednn_tiles, "serves", lambda *_: True)
    assert ((torch_ops.self_attention(q, k, v, table) - exact).norm() / exact.norm()).item() < 1e-6


@pytest.mark.parametrize("tiles", [True, False])
def test_attention_of_bfloat16_has_the_softmax_of_float32(monkeypatch, tiles):
    """The error is that of rounding operands and result, not of rounding logits."""
    if not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 2, 48) * s for s in (3, 3, 1))
    table, half = torch.tensor([[0, 1], [1, 0]]), [x.bfloat16() for x in (q, k, v)]
    exact = torch_ops.self_attention(*(x.double() for x in half), table)
    monkeypatch.setattr(onednn_tiles, "serves", lambda *_: tiles)
    monkeypatch.setattr(torch_ops, "prefers_onednn", lambda: True)
    out = torch_ops.self_attention(*half, table)
    assert out.dtype == torch.bfloat16 and ((out - exact).norm() / exact.norm()).item() < 2.5e-3
