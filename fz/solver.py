"""How is a step taken along what the UNet says? `--solver`: DDIM, or the second-order multistep DPM-Solver++(2M).

Both make one pass a step, at the same timesteps up and down, so that an edit finds the source's attention at its own t.
DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) solves the same ODE for the data prediction x = (z - sigma eps) / alpha
(its Proposition 4.1), and takes x half-way of a step from the last two (Algorithm 2).
"""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fz.ddim import CLEAN, Schedule, ddim_inverse_step, ddim_step

# how far x is extrapolated, in intervals between the last two: Stable Diffusion's timesteps are even in t, so the last
# step in log-SNR is several times as long as the one before it. Less error than without (tests/test_solver.py)
FURTHEST = 1.0


class Solver(Protocol):
    """One loop's steps over a schedule."""

    def shown(self, z: Tensor, t_prev: int, t: int) -> Tensor:
        """What the UNet sees at t of an inversion step from z at t_prev."""

    def up(self, shown: Tensor, eps: Tensor, t_prev: int, t: int) -> Tensor:
        """z_t of an inversion step, whose UNet was shown that and predicted eps at t."""

    def down(self, z: Tensor, eps: Tensor, t: int, t_prev: int) -> Tensor:
        """One denoising step, z at t -> z at t_prev."""


@dataclass(frozen=True)
class DDIM:
    """FateZero's eq. 2 and 3. Going up, the UNet is shown z before the step, at the step's target timestep."""

    schedule: Schedule

    def shown(self, z: Tensor, t_prev: int, t: int) -> Tensor:
        return z

    def up(self, shown: Tensor, eps: Tensor, t_prev: int, t: int) -> Tensor:
        return ddim_inverse_step(shown, eps, self.schedule.alpha_bar(t_prev), self.schedule.alpha_bar(t))

    def down(self, z: Tensor, eps: Tensor, t: int, t_prev: int) -> Tensor:
        return ddim_step(z, eps, self.schedule.alpha_bar(t), self.schedule.alpha_bar(t_prev))


@dataclass(frozen=True)
class Multistep:
    """DPM-Solver++(2M), down and, by the same formula with log-SNR falling, up.

    clean: x by timestep, of the steps that are done; a step finds the last ones there and leaves its own. Going up, z_t
    follows from the x before it, and the UNet is shown z_t itself. The first step up has none: it is DDIM's. So is the
    first one down, and the one to CLEAN, whose log-SNR may be infinite.
    """

    schedule: Schedule
    clean: dict[int, Tensor]

    def shown(self, z: Tensor, t_prev: int, t: int) -> Tensor:
        return z if t_prev == CLEAN else self.step(z, t_prev, t)

    def up(self, shown: Tensor, eps: Tensor, t_prev: int, t: int) -> Tensor:
        ddim = DDIM(self.schedule)
        z_t = ddim.up(shown, eps, t_prev, t) if t_prev == CLEAN else shown
        self.clean[t] = data_prediction(z_t, eps, self.schedule.alpha_bar(t))
        return z_t

    def down(self, z: Tensor, eps: Tensor, t: int, t_prev: int) -> Tensor:
        self.clean[t] = data_prediction(z, eps, self.schedule.alpha_bar(t))
        return self.step(z, t, t_prev)

    def step(self, z: Tensor, s: int, t: int) -> Tensor:
        """z_s -> z_t, up or down: sigma_t / sigma_s z_s - alpha_t (exp(-h) - 1) D, and alpha_t exp(-h) = sigma_t /
        sigma_s alpha_s.
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (levels(self.schedule.alpha_bar(u)) for u in (s, t))
        ratio = sigma_t / sigma_s
        return ratio * z + (alpha_t - ratio * alpha_s) * self.halfway(s, t)

    def halfway(self, s: int, t: int) -> Tensor:
        """D of Algorithm 2: (1 + w) x_s - w x_r, w = 1 / 2r there = h / (2 h_r), r the timestep before s."""
        r, x = self.before(s, t), self.clean[s]
        if t == CLEAN or r not in self.clean:
            return x
        at_r, at_s, at_t = (log_snr(self.schedule.alpha_bar(u)) for u in (r, s, t))
        w = min((at_t - at_s) / (2 * (at_s - at_r)), FURTHEST)
        return (1 + w) * x - w * self.clean[r]

    def before(self, s: int, t: int) -> int | None:
        """The timestep from which a loop that goes on to t came to s; None where it began at s."""
        times = self.schedule.timesteps
        i = times.index(s) + (1 if t > s else -1)
        return times[i] if 0 <= i < len(times) else None


def data_prediction(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """x, the clean latent that z and the noise predicted in it mean."""
    alpha, sigma = levels(alpha_bar)
    return (z - sigma * eps) / alpha


def levels(alpha_bar: float) -> tuple[float, float]:
    """alpha and sigma."""
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def log_snr(alpha_bar: float) -> float:
    """lambda = log(alpha / sigma)."""
    return math.log(alpha_bar / (1 - alpha_bar)) / 2


def solver_of(name: str, schedule: Schedule, clean: dict[int, Tensor]) -> Solver:
    """A loop's solver. clean: where one that remembers has its data predictions, by timestep."""
    return DDIM(schedule) if name == "ddim" else Multistep(schedule, clean)
