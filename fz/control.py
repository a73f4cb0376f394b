"""The ControlNet of a run: at which steps does it act on what, and what of it do results depend on?"""

from typing import Any

from torch import Tensor

from fz.ddim import Schedule
from fz.memory.inversions import model_digest
from fz.model import fast_cpu
from fz.model.control import Control, ControlNet
from fz.settings.config import Settings
from fz.settings.control import within


def control_of(net: ControlNet, shown: Tensor, settings: Settings, schedule: Schedule) -> Control:
    """shown: (F, 3, H, W) in [-1, 1]."""
    window, steps = settings.control_window, schedule.steps
    acts = frozenset(t for k, t, _ in schedule.downward() if within(window, k, steps))
    return Control(net, net.hint((shown + 1) / 2), settings.control_scale, acts)


def parts_of(control: Control | None) -> list[Any]:
    """For `fz.memory.inversions.digest`: nothing without one."""
    if control is None:
        return []
    net, acts = control.net, sorted(control.timesteps)
    return [net.config, model_digest(net), fast_cpu.signature(net), control.hint, control.scale, acts]
