"""DDIM steps with eta = 0, up and down (Song et al. 2020; FateZero eq. 2 and 3), and Stable Diffusion's noise schedule.

Time is a key: z lives at a timestep t (0 … 999), or at `CLEAN` where t would fall below zero and alpha_bar is that of
timestep 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fz.errors import FzError, suggest

CLEAN = -1  # the timestep of z_0


def ddim_step(z: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """One denoising step, z_t -> z_{t-1} (FateZero eq. 2).

    z, eps: (..., C, H, W) latents scaled by 0.18215, and the noise predicted in z; alpha_bar of z and of the result, in
    (0, 1].
    """
    return move(z, eps, alpha_bar, alpha_bar_prev)


def ddim_inverse_step(z: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """One inversion step, z_{t-1} -> z_t (FateZero eq. 3). Raises ValueError if alpha_bar_next > alpha_bar (inversion
    adds noise).
    """
    if alpha_bar_next > alpha_bar:
        raise ValueError(f"inversion adds noise: alpha_bar_next {alpha_bar_next} > alpha_bar {alpha_bar}")
    return move(z, eps, alpha_bar, alpha_bar_next)


def move(z: Tensor, eps: Tensor, alpha_bar: float, to_alpha_bar: float) -> Tensor:
    """Predict the clean latent, then put it at another noise level along the same eps: eq. 2 and eq. 3 are this one
    formula.
    """
    clean = (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return to_alpha_bar**0.5 * clean + (1 - to_alpha_bar) ** 0.5 * eps


class Step(NamedTuple):
    """Edit step k = 0 … T-1: z goes from timestep t to t_prev."""

    k: int
    t: int
    t_prev: int


@dataclass(frozen=True)
class Schedule:
    """The T timesteps of a run and alpha_bar at each. Made by `Schedule.from_config`.

    timesteps: descending, T of them; alpha_bars: cumulative products of all training timesteps, float64;
    clean_alpha_bar: that of z_0.
    """

    timesteps: tuple[int, ...]
    alpha_bars: tuple[float, ...]
    clean_alpha_bar: float

    @classmethod
    def from_config(cls, config: Mapping, steps: int) -> "Schedule":
        """From a `scheduler_config.json` (any scheduler class: all of SD v1's share the noise schedule) and a number of
        steps.

        Raises FzError for another prediction type or beta schedule, and for steps outside 1 … num_train_timesteps.
        """
        train, beta_start, beta_end, kind, offset = checked(config)
        if not 1 <= steps <= train:
            raise FzError(f"steps: got {steps}, expected 1 to {train}. The paper uses 50.")
        if kind == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, train, dtype=torch.float64) ** 2
        else:
            betas = torch.linspace(beta_start, beta_end, train, dtype=torch.float64)
        stride = train // steps
        # with very many steps the offset would pass the last training timestep
        offset = min(offset, train - 1 - stride * (steps - 1))
        timesteps = tuple(stride * i + offset for i in reversed(range(steps)))
        alpha_bars = (1 - betas).cumprod(0).tolist()
        return cls(timesteps, tuple(alpha_bars), 1.0 if config.get("set_alpha_to_one", False) else alpha_bars[0])

    @property
    def steps(self) -> int:
        """T."""
        return len(self.timesteps)

    def alpha_bar(self, t: int) -> float:
        """Cumulative product at timestep t; at CLEAN that of timestep 0, or 1 under `set_alpha_to_one: true`, which SD
        v1 is not.
        """
        return self.clean_alpha_bar if t == CLEAN else self.alpha_bars[t]

    def upward(self) -> Iterator[tuple[int, int]]:
        """(t_prev, t) of every inversion step: from CLEAN to the noisiest."""
        times = (CLEAN, *reversed(self.timesteps))
        return zip(times, times[1:], strict=False)

    def downward(self, done: int = 0) -> Iterator[Step]:
        """Every denoising step that is left after `done` of them, from the noisiest to CLEAN."""
        times = (*self.timesteps, CLEAN)
        return (Step(k, times[k], times[k + 1]) for k in range(done, self.steps))


def checked(config: Mapping) -> tuple[int, float, float, str, int]:
    """(num_train_timesteps, beta_start, beta_end, beta_schedule, steps_offset) of a `scheduler_config.json`. Raises
    FzError for what is no noise schedule, or another than Stable Diffusion v1's.
    """
    if config.get("prediction_type", "epsilon") != "epsilon":
        got = f"scheduler: prediction_type is {config['prediction_type']!r}"
        raise FzError(f"{got}, expected 'epsilon'. Use a Stable Diffusion v1.x model.")
    train, offset = config.get("num_train_timesteps", 1000), config.get("steps_offset", 1)
    for name, value, low, high in (("num_train_timesteps", train, 1, 10**5), ("steps_offset", offset, 0, 10**5)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FzError(f"scheduler: {name} is {value!r}, expected a whole number from {low} to {high}, as SD v1's.")
    start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    numbers = all(isinstance(beta, (int, float)) and not isinstance(beta, bool) for beta in (start, end))
    if not numbers or not 0 < start <= end < 1:
        raise FzError(f"scheduler: betas go from {start!r} to {end!r}, expected 0 < beta_start <= beta_end < 1.")
    kind = config.get("beta_schedule", "scaled_linear")
    if kind not in ("scaled_linear", "linear"):
        near = suggest(kind, ("scaled_linear", "linear"))
        raise FzError(f"scheduler: beta_schedule is {kind!r}, expected 'scaled_linear' (SD v1) or 'linear'.{near}")
    return train, float(start), float(end), kind, offset
