"""The ways to edit that `bench.pareto` compares: settings that each has other than exact."""

from collections.abc import Mapping
from typing import Any

from fz import mini
from fz.settings.config import FAST

EXACT = "exact"
STEPS = mini.DEFAULTS["steps"]
WAYS: Mapping[str, Mapping[str, Any]] = {
    EXACT: {},
    "reuse 2": {"reuse": 2},
    "reuse 3": {"reuse": 3},
    "reuse 3:outer": {"reuse": "3:outer"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"weights": "int8"},
    "guidance window 0.6": {"guidance_window": (0.0, 0.6)},
    "10 steps": {"steps": 10},
    "dpm++2m": {"solver": "dpm++2m"},
    "dpm++2m, 10 steps": {"solver": "dpm++2m", "steps": 10},
    "50 steps": {"steps": 50},
    "fast": {"steps": STEPS // 2, **FAST},
    "fast, guided throughout": {"steps": STEPS // 2, **FAST, "guidance_window": (0.0, 1.0)},
    "fast, guided throughout, reuse 3": {"steps": STEPS // 2, **FAST, "guidance_window": (0.0, 1.0), "reuse": "3"},
}
