"""One stage of a training that ends after its minutes: warm up, then a cosine down. The VAE and the CLIP are trained
so.
"""

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from fz.mini.state import Resumable, write_row


class Stage(Resumable):
    """Everything of it is in DIR/NAME.pt."""

    def __init__(self, state: Path, name: str, modules: dict[str, nn.Module], rate: float, minutes: float):
        self.name, self.rate, self.minutes, self.log = name, rate, minutes, state / f"log-{name}.csv"
        super().__init__(state / f"{name}.pt", modules)

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Train until the minutes are over."""
        recent: list[float] = []
        for _ in self.rounds(lambda _: self.seconds < 60 * self.minutes):
            loss = loss_of(self.steps)
            self.step(loss)
            recent.append(loss.item())
            if self.steps % 50 == 0:
                mean = f"{sum(recent) / len(recent):.5f}"
                write_row(
                    self.log, {"stage": self.name, "step": self.steps, "seconds": round(self.seconds), "loss": mean}
                )
                recent = []

    def rate_now(self) -> float:
        """After a warm-up a cosine down to a twentieth of the rate."""
        done = self.seconds / (60 * self.minutes)
        return super().rate_now() * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))

    def finished(self) -> dict[str, nn.Module]:
        """The modules with their averaged weights, not to be trained on."""
        self.modules.load_state_dict(self.shadow)
        return {name: module.eval().requires_grad_(False) for name, module in self.modules.items()}
