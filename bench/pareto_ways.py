"""The ways to edit that `bench.pareto` compares: settings that each has other than exact."""

from collections.abc import Mapping
from typing import Any

from fz import mini
from fz.settings.fast import FAST, fast_steps

EXACT = "exact"
STEPS = mini.DEFAULTS["steps"]
WAYS: Mapping[str, Mapping[str, Any]] = {
    EXACT: {},
    "reuse 2": {"reuse": 2},
    "reuse 3": {"reuse": 3},
    "reuse 2:outer": {"reuse": "2:outer"},
    "reuse 3:outer": {"reuse": "3:outer"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"weights": "int8"},
    "guidance window 0.5": {"guidance_window": (0.0, 0.5)},
    "8 steps": {"steps": fast_steps(STEPS)},
    "dpm++2m": {"solver": "dpm++2m"},
    "dpm++2m, 8 steps": {"solver": "dpm++2m", "steps": fast_steps(STEPS)},
    "50 steps": {"steps": 50},
    "fast": {"steps": fast_steps(STEPS), **FAST},
    "fast, guided throughout": {"steps": fast_steps(STEPS), **FAST, "guidance_window": (0.0, 1.0)},
}
