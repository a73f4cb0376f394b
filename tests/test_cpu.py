"""The fast ways on a CPU compute what the plain layers do, within the budget they were given, and step aside for
gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fz.kernels import gemm
from fz.kernels.winograd import Winograd
from fz.model import fast_cpu
from fz.model.fast_cpu import PackedGEGLU, PackedLinear
from fz.model.layers import GEGLU, Conv3x3, TextContext
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


@pytest.mark.parametrize("conv", ["direct", "auto"])
def test_a_prepared_unet_gives_the_same_noise(unet, conv):
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


def test_winograd_spends_no_more_than_its_budget(unet):
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


def test_sizes_of_the_convolutions_are_those_of_the_forward_pass(unet):
    seen = {}
    for name, module in unet.named_modules():
        if isinstance(module, Conv3x3):
            module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(m, out.shape[-2:]))
    with torch.no_grad():
        unet(torch.randn(1, 2, 4, 16, 24), 1, TextContext(torch.randn(1, 77, 48)))
    for site in fast_cpu.convolutions(unet, (16, 24)):
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
