"""Metrics against cases made by hand: published definitions, plain loops, and motions that are known."""

import math

import numpy as np
import pytest
import torch

from fz.errors import FzError
from fz.metrics import numbers


def at(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=torch.float64)


def texture(h, w, seed=0):
    """Textured everywhere and at every scale, the coarse stronger, as pictures are."""
    chance, out = torch.Generator().manual_seed(seed), torch.zeros(1, 3, h, w)
    for cell in (4, 8, 16, 32):
        noise = torch.rand(1, 3, h // cell, w // cell, generator=chance) - 0.5
        out += torch.nn.functional.interpolate(noise, size=(h, w), mode="bicubic") * cell / 40
    return (out + 0.5).clamp(0, 1)[0].permute(1, 2, 0)


def moving(dx, dy, frames=3, size=96):
    """A textured picture seen through a window that moves, so that its content moves by (dx, dy) a frame."""
    big = (texture(size + 64, size + 64) * 255).round().to(torch.uint8).numpy()
    return np.stack([big[32 - i * dy : 32 - i * dy + size, 32 - i * dx : 32 - i * dx + size] for i in range(frames)])


def test_tem_con_is_the_mean_cosine_of_neighbours():
    # 0-60 and 60-60 degrees: (0.5 + 1) / 2; not of all pairs, not to the first frame
    assert numbers.tem_con(at(0, 60, 60)) == pytest.approx(0.75)
    assert numbers.tem_con(at(0, 90, 0)) == pytest.approx(0, abs=1e-12)
    assert numbers.tem_con(at(10)) is None


def test_frame_acc_counts_frames_nearer_to_the_target():
    images, source, target = at(0, 20, 44, 46, 90), at(0)[0], at(90)[0]
    assert numbers.frame_acc(images, source, target) == pytest.approx(0.4)
    assert numbers.frame_acc(at(45), source, source) == 0  # a tie is no win
    assert numbers.text_score(at(0, 60), at(0)[0]) == pytest.approx(0.75)


def test_psnr_by_hand():
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = 151  # 0.2 of the range in one of 32 pixels
    assert numbers.psnr(a, b) == pytest.approx(10 * math.log10(32 / 0.04), abs=1e-4)
    mask = np.zeros((2, 4, 4), bool)
    mask[0, 0, 0] = True
    assert numbers.psnr(a, b, mask) == pytest.approx(10 * math.log10(1 / 0.04), abs=1e-4)
    assert numbers.psnr(a, b, ~mask) == 100
    assert numbers.psnr(a, b, mask & False) is None
    with pytest.raises(FzError, match="expected the same number and size"):
        numbers.psnr(a, b[:1])


def test_ssim_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 1, 16, 14, 3), dtype=np.uint8)
    window = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    x, y = (f[0] / 255 @ [0.299, 0.587, 0.114] for f in (a, b))
    expected = np.zeros((6, 4))
    for i in range(6):
        for j in range(4):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, c = (
                (window * (p - mp) ** 2).sum(),
                (window * (q - mq) ** 2).sum(),
                (window * (p - mp) * (q - mq)).sum(),
            )
            expected[i, j] = (2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
    assert numbers.ssim(a, b) == pytest.approx(expected.mean(), abs=1e-9)
    assert numbers.ssim(a, a) == pytest.approx(1)
    mask = np.zeros((1, 16, 14), bool)
    mask[0, 6, 5] = True
    assert numbers.ssim(a, b, mask) == pytest.approx(expected[1, 0], abs=1e-9)


def test_warp_error_is_nothing_along_the_true_motion():
    clip = moving(3, -2)
    flow = np.broadcast_to(np.float32([3, -2]), (2, 96, 96, 2))
    assert numbers.warp_error(clip, flow) < 1e-9
    # along the opposite motion or none it is not, and a flickering clip has an error of its own
    assert numbers.warp_error(clip, -flow) > 1e-3 and numbers.warp_error(clip, flow * 0) > 1e-3
    flicker = clip.copy()
    flicker[1] = (flicker[1] * 0.5).astype(np.uint8)
    assert numbers.warp_error(flicker, flow) > 1e-2
    assert numbers.warp_error(clip[:1], flow[:0]) is None
    with pytest.raises(FzError, match="flow: got"):
        numbers.warp_error(clip, flow[:1])


@pytest.mark.parametrize("dx, dy", [(1, 0), (-3, 2), (7, -5), (12, 4)], ids=str)
def test_estimated_motion(dx, dy):
    flow, seen = numbers.estimate_flow(moving(dx, dy))
    inner = np.zeros_like(seen)
    inner[:, 24:-24, 24:-24] = True
    error = np.linalg.norm(flow - np.float32([dx, dy]), axis=-1)
    assert seen[inner].mean() > 0.95
    assert np.median(error[inner & seen]) < 0.1 and np.quantile(error[inner & seen], 0.95) < 0.5


def test_estimated_motion_of_nothing():
    flow, seen = numbers.estimate_flow(np.full((3, 48, 64, 3), 90, np.uint8))
    assert not flow.any() and seen.all() and flow.shape == (2, 48, 64, 2)
    flow, seen = numbers.estimate_flow(np.full((1, 48, 64, 3), 90, np.uint8))
    assert flow.shape == (0, 48, 64, 2) and seen.shape == (0, 48, 64)


def test_clip_patch_distance():
    a = [torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1) for _ in range(3)]
    assert numbers.clip_patch_distance(a, a) == 0
    assert numbers.clip_patch_distance(a, [-x for x in a]) == pytest.approx(4, abs=1e-5)
