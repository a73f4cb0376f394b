"""A ControlNet's settings, which are a run's own: which file, shown what, how strongly, at which steps?"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fz.errors import FzError
from fz.settings.checks import Window, check_number, window


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """control: the ControlNet, None for none. control_video: what it is shown, None: 'canny', the clip's own edges.
    control_window: the share of the steps at which it acts. control_inverts: in the inversion, too. canny: the
    gradients of an edge's weakest and of its strongest pixel.
    """

    control: str | None = None
    control_video: str | None = None
    control_scale: float = 1.0
    control_window: Window = (0.0, 1.0)
    control_inverts: bool = True
    canny: tuple[float, float] = (50.0, 100.0)


# what each of a ControlNet's settings is without one
OF_CONTROL = {f.name: f.default for f in dataclasses.fields(ControlSettings) if f.name != "control"}


def check_control(settings: Any) -> None:
    """Put them in their usual form. Raise FzError unless they go together, and with the run's method."""
    object.__setattr__(settings, "control_window", window(settings.control_window, "control_window"))
    object.__setattr__(settings, "canny", thresholds(settings.canny))
    given = [name for name, usual in OF_CONTROL.items() if getattr(settings, name) != usual]
    if settings.control is None:
        if given:
            got = f"{given[0]}: got {getattr(settings, given[0])!r} without a ControlNet"
            raise FzError(f"{got}, expected one. Pass --control.")
        return
    check_number("control_scale", settings.control_scale, 0, 10, "1 is usual.")
    if not isinstance(settings.control_inverts, bool):
        raise FzError(f"control_inverts: got {settings.control_inverts!r}, expected True or False.")
    if settings.method == "null-p2p":
        expected = "expected fatezero, ddim, sdedit or pnp: it takes frames out of their clip. Leave --control out"
        raise FzError(f"control: got method null-p2p, {expected}.")
    if settings.reuse != 1:
        expected = "expected 1: the deep features of another step would lack its control. Pass --reuse 1"
        raise FzError(f"control: got reuse {settings.reuse}, {expected}.")
    if settings.graph == "on":
        raise FzError("control: got --graph on, expected auto or off: passes with a ControlNet are not replayed.")
    if settings.shard:
        raise FzError("control: got --shard, expected one without the other. Leave one of them out.")
    if "canny" in given and settings.control_video not in (None, "canny"):
        got = f"canny: got thresholds and the control video {settings.control_video!r}"
        raise FzError(f"{got}, which has its own edges. Leave --canny out.")


def thresholds(value: Any) -> tuple[float, float]:
    """Of edges: (low, high), 0 to 2040, the largest gradient that there is. Raises FzError."""
    numbers = isinstance(value, (list, tuple)) and len(value) == 2
    if not numbers or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        raise FzError(f"canny: got {value!r}, expected two gradients, as [50, 100].")
    if not 0 <= value[0] <= value[1] <= 2040:
        raise FzError(f"canny: got {value[0]:g} and {value[1]:g}, expected 0 <= low <= high <= 2040, as 50,100.")
    return (float(value[0]), float(value[1]))


def within(share: Window, k: int, steps: int) -> bool:
    """Is step k of so many in this share of them?"""
    return share[0] <= k / steps < share[1]
