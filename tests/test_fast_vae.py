"""The VAE's fast ways on a CPU compute what its plain layers do, in any bands, and step aside where they do not pay."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from random_weights import numbers, randomize, relative

import fz
from fz import mini
from fz.kernels import gemm
from fz.kernels.winograd import UPSAMPLED, Winograd
from fz.memory import budget
from fz.model import fast_vae
from fz.model.fast_vae import FastUpsample, WinogradConv, prepare, takes
from fz.model.vae import VAE, VAEConfig

SMALL = VAEConfig(block_out_channels=(8, 32, 32), layers_per_block=1, norm_num_groups=4)
CPU = torch.device("cpu")


@pytest.fixture
def vae():
    return randomize(VAE(SMALL)).to(memory_format=torch.channels_last)


@pytest.fixture
def narrow_too(monkeypatch):
    """Layers of the tests' models, which are narrower and smaller than it pays for, take the fast ways in bands."""
    monkeypatch.setattr(fast_vae, "LEAST_WINOGRAD", 32)
    monkeypatch.setattr(fast_vae, "LEAST_PIXELS", 1)
    monkeypatch.setattr(fast_vae, "BAND", 2**16)


def direct(x, weight, bias, m):
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if m == UPSAMPLED else x
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("m", [2, 4, UPSAMPLED])
@pytest.mark.parametrize(("h", "w"), [(16, 16), (13, 10), (9, 7), (1, 3), (37, 5)])
def test_bands_are_the_whole(monkeypatch, h, w, m, onednn):
    if onednn and not gemm.has_packed():
        pytest.skip("this PyTorch has no packed product")
    monkeypatch.setattr("fz.kernels.winograd.prefers_onednn", lambda: onednn)
    x = numbers(1, 2, 24, h, w).contiguous(memory_format=torch.channels_last)
    weight, bias = numbers(2, 40, 24, 3, 3), numbers(3, 40)
    whole = Winograd(weight, bias, m)(x)
    expected = direct(x.double(), weight.double(), bias.double(), m)
    bands = []
    for band in (1, 2**17, 10**9):
        winograd = Winograd(weight, bias, m, band=band)
        convolve, tops = winograd.convolve, []
        winograd.convolve = lambda x, top, out, tops=tops, convolve=convolve: (tops.append(top), convolve(x, top, out))
        assert relative(winograd(x), whole) < 1e-6
        bands.append(len(tops))
    rows = -(-h // winograd.step)
    assert bands[0] == rows and bands[0] >= bands[1] >= bands[2] == 1
    assert relative(whole, expected) < 8e-6


@pytest.mark.parametrize(("m", "bound"), [(2, 4), (4, 16), (UPSAMPLED, 2)])
def test_its_error_is_a_small_multiple_of_the_direct_ways(m, bound):
    x = numbers(1, 1, 128, 24, 20).contiguous(memory_format=torch.channels_last)
    weight, bias = numbers(2, 128, 128, 3, 3), numbers(3, 128)
    expected = direct(x.double(), weight.double(), bias.double(), m)
    error = relative(Winograd(weight, bias, m, band=2**20)(x), expected)
    assert error < bound * relative(direct(x, weight, bias, m), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(32, 48), (20, 36)])
def test_a_prepared_vae_gives_the_same(vae, narrow_too, h, w, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    size = (h // 4, w // 4)
    frames, z = numbers(4, 2, 3, h, w).clamp(-1, 1), numbers(5, 2, 4, *size)
    try:
        with torch.no_grad():
            encoding, decoding = prepare(vae, "encoder", size), prepare(vae, "decoder", size)
            assert 0 < relative(encoding.encode(frames), vae.encode(frames)) < 1e-5
            assert 0 < relative(decoding.decode(z), vae.decode(z)) < 1e-5
            assert torch.equal(encoding.decode(z), vae.decode(z)) and torch.equal(
                decoding.encode(frames), vae.encode(frames)
            )
    finally:
        torch.set_num_threads(before)
    kinds = [type(layer) for layer in decoding.modules()]
    # the middle's four, two levels' eight but the first of 8 channels; conv_in is narrow
    assert kinds.count(WinogradConv) == 12 and kinds.count(FastUpsample) == 2
    assert list(decoding.state_dict()) == list(vae.state_dict())
    assert all(a is b for a, b in zip(decoding.parameters(), vae.parameters(), strict=True))


def test_gradients_take_the_plain_layers(vae, narrow_too):
    z = numbers(5, 1, 4, 8, 8).requires_grad_()

    def gradient(model):
        return torch.autograd.grad(model.decode(z).square().mean(), z)[0]

    assert torch.equal(gradient(prepare(vae, "decoder", (8, 8))), gradient(vae))


def test_where_a_vae_is_made_fast(monkeypatch):
    monkeypatch.setattr(fast_vae, "total_memory", lambda: 16 * 10**9)
    with torch.device("meta"):
        sd, narrow = VAE(VAEConfig()), VAE(dataclasses.replace(VAEConfig(), block_out_channels=(64, 64, 128, 128)))
        half = VAE(VAEConfig()).bfloat16()
    assert takes(sd, (32, 32)) and takes(sd, (64, 48))
    assert not takes(sd, (32, 32), "direct") and not takes(sd, (16, 24))
    assert not takes(narrow, (64, 64)) and not takes(half, (64, 64))
    assert prepare(sd, "decoder", (8, 8)) is sd
    monkeypatch.setattr(fast_vae, "total_memory", lambda: 4 * 10**9)
    assert not takes(sd, (32, 32))


def test_the_prediction_counts_the_transformed_weights(monkeypatch):
    with torch.device("meta"):
        sd = VAE(VAEConfig())
    for total, extra in ((16, fast_vae.transformed_bytes(sd)), (4, 0)):
        monkeypatch.setattr(fast_vae, "total_memory", lambda total=total: total * 10**9)
        assert budget.vae_bytes(sd, 512, 512, CPU) == 6 * 256 * 512 * 512 * 4 + extra
    transformed = sum(layer.product.products.nbytes for layer in decoder_of_products(sd, monkeypatch))
    assert fast_vae.transformed_bytes(sd) == transformed + 4 * fast_vae.BAND


def decoder_of_products(sd, monkeypatch):
    """The fast layers of its decoder, transformed without memory."""
    monkeypatch.setattr("fz.kernels.winograd.prefers_onednn", lambda: False)
    monkeypatch.setattr(fast_vae, "total_memory", lambda: 16 * 10**9)
    with torch.device("meta"):
        fast = prepare(sd, "decoder", (64, 64))
    return [layer for layer in fast.modules() if isinstance(layer, (WinogradConv, FastUpsample))]


def test_a_run_encodes_and_decodes_so(monkeypatch, narrow_too):
    """The miniature, whose layers are narrower: the same pictures to less than a grey level."""
    clip = fz.read(mini.example()["clip.path"], frames=2, size=128)
    made = []

    def noted(vae, part, *rest):
        fast = prepare(vae, part, *rest)
        made.append((part, fast is not vae))
        return fast

    monkeypatch.setattr("fz.model.fast_vae.prepare", noted)

    def edited(**settings):
        made.clear()
        inversion = fz.load(device="cpu", **settings).invert(clip, "a red car moving on the sand", steps=2)
        return inversion.edit("a blue car moving on the sand").frames, dict(made)

    (fast, of_fast), (plain, of_plain) = edited(), edited(conv="direct")
    assert of_fast == {"encoder": True, "decoder": True} and of_plain == {"encoder": False, "decoder": False}
    assert (fast - plain).abs().max() < 2 / 255
