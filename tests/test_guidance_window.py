"""--guidance-window: outside it, an edit step has one branch and is what guidance 1 gives."""

import pytest
import torch
from test_edit import CONFIG, FRAMES, edited, equal, fusion, inverted

from fz.errors import FzError
from fz.model.unet import UNet
from fz.settings.config import build


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(CONFIG).eval().to(memory_format=torch.channels_last)


def branches_of(unet, run):
    seen = []
    handle = unet.conv_in.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0]) // FRAMES))
    run()
    handle.remove()
    return seen


def test_steps_outside_the_window_have_one_branch(unet):
    source = inverted(unet)
    assert branches_of(unet, lambda: edited(unet, source, window=(0.2, 0.6))) == [1, 2, 2, 1, 1]


@pytest.mark.parametrize("plan", [None, fusion()], ids=["plain", "fused"])
def test_the_whole_window_is_guidance_and_an_empty_one_is_none(unet, plan):
    source = inverted(unet)
    assert equal(edited(unet, source, plan, window=(0.0, 1.0)), edited(unet, source, plan))
    assert equal(edited(unet, source, plan, window=(0.0, 0.0)), edited(unet, source, plan, 1.0))
    first = edited(unet, source, plan, window=(0.0, 0.4))
    assert equal(first[:2], edited(unet, source, plan)[:2])
    assert not torch.allclose(first[2], edited(unet, source, plan)[2], atol=1e-4)


def test_the_window_is_a_setting_of_methods_that_know_it():
    overlay = {"clip.path": "a.mp4", "source": "a car", "edits.0.target": "a boat", "guidance_window": 0.4}
    assert build(overlay).guidance_window == (0.0, 0.4)
    with pytest.raises(FzError, match="guidance_window: got .* with method pnp, expected"):
        build(overlay, {"method": "pnp"})
    with pytest.raises(FzError, match="guidance_window: got 1.5, expected"):
        build(overlay, {"guidance_window": 1.5})
