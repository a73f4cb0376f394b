"""What the numbers of a tuning may be, whether flags, a YAML or Python gives them."""

import math
from typing import Any

from fz.errors import FzError
from fz.settings.checks import check_paths, check_whole, is_number

WHOLE = {
    "steps": (1, 10**7),
    "rank": (1, 10_000),
    "lora_rank": (1, 10_000),
    "accumulate": (1, 10_000),
    "seed": (0, 2**63 - 1),
    "sample_every": (0, 10**7),
    "sample_steps": (1, 1000),
    "save_every": (1, 10**7),
    "threads": (1, 1024),
}
NUMBERS = {"guidance": (0, 1000), "class_weight": (0, 1000), "snr_power": (0, 1)}


def check_tuning(settings: Any) -> None:
    """Raises FzError for a number of `TuneSettings` that cannot be, and for a path of nothing."""
    check_paths(settings)
    for name, (low, high) in WHOLE.items():
        value = getattr(settings, name)
        if value is not None:
            check_whole(name, value, low, high)
    for name, (low, high) in NUMBERS.items():
        value = getattr(settings, name)
        if not is_number(value, low, high):
            raise FzError(f"{name}: got {value!r}, expected a number from {low} to {high}.")
    if settings.rate is not None and not (isinstance(settings.rate, float) and math.isfinite(settings.rate)):
        raise FzError(f"rate: got {settings.rate!r}, expected a number between 0 and 1, as 3e-5.")
