"""What does `--fast` take? Settings beneath all other flags; what each costs and gains is in docs/measurements.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from fz.settings.config import REUSING, Overlay, Settings

# beside fewer steps; `bench.pareto` measures it
FAST: Mapping[str, Any] = {"weights": "int8", "reuse": "2:outer", "guidance_window": (0.0, 0.5)}


def fast_steps(usual: int) -> int:
    """Those of `--fast`: about three eighths of the usual ones, 18 of 50, and even: of an odd number one more is whole,
    as the last two always are.
    """
    return max(1, 2 * round(usual * 3 / 16))


def fast_overlay(beneath: Sequence[Overlay], method: str) -> tuple[Overlay, str]:
    """What `--fast` lays over the defaults and a config, beneath all other flags, and a line that says so."""
    usual = next((overlay["steps"] for overlay in reversed(beneath) if "steps" in overlay), Settings.steps)
    takes = (
        FAST if method in REUSING else {name: FAST[name] for name in FAST if name not in ("reuse", "guidance_window")}
    )
    overlay = {"steps": fast_steps(usual), **takes}
    said = ", ".join(f"{name.replace('_', '-')} {','.join(map(str, v)) if isinstance(v, tuple) else v}"
                     for name, v in overlay.items())  # fmt: skip
    return overlay, f"fast: {said}, unless other flags say otherwise; each is a flag of its own"
