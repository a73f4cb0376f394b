"""The ControlNet of a run: at which steps does it act on what, and what of it do results depend on?"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from fz.denoiser import Denoiser
from fz.loaded import Loaded
from fz.memory.inversions import model_digest
from fz.model import fast_cpu
from fz.model.control import Control, ControlNet
from fz.settings.config import Settings
from fz.settings.control import within


def controlled(
    model: Denoiser, loaded: Loaded, net: ControlNet | None, shown: Tensor | None, settings: Settings
) -> tuple[Denoiser, Denoiser]:
    """The model with the ControlNet, and the inversion's, which may go without. shown: (F, 3, H, W) in [-1, 1]."""
    if net is None or shown is None:
        return model, model
    schedule, window = model.schedule, settings.control_window
    with loaded.resident(loaded.control):
        hint = net.hint((shown + 1) / 2)
    acts = frozenset(t for k, t, _ in schedule.downward() if within(window, k, schedule.steps))
    beside = replace(model, control=Control(net, hint, settings.control_scale, acts))
    return beside, beside if settings.control_inverts else model


def parts_of(control: Control | None) -> list[Any]:
    """For `fz.memory.inversions.digest`: nothing without one."""
    if control is None:
        return []
    net, acts = control.net, sorted(control.timesteps)
    return [net.config, model_digest(net), fast_cpu.signature(net), control.hint, control.scale, acts]
