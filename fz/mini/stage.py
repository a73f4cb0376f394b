"""One stage of a training that ends after its minutes: warm up, then a cosine down. The VAE and the CLIP are trained
so.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY = 120  # seconds


class Stage:
    """One stage: modules, optimiser, EMA, seconds trained; all of it in one file, written whole. Goes on where the file
    ends.
    """

    def __init__(
        self, state: Path, name: str, modules: dict[str, nn.Module], rate: float, minutes: float, average: float = 0.999
    ):
        self.path, self.name, self.modules = state / f"{name}.pt", name, nn.ModuleDict(modules)
        self.rate, self.minutes, self.average = rate, minutes, average
        self.seconds, self.steps = 0.0, 0
        self.optimiser = torch.optim.AdamW(self.modules.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.shadow = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.log = state / f"log-{name}.csv"
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.modules.load_state_dict(saved["modules"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.shadow, self.seconds, self.steps = saved["shadow"], saved["seconds"], saved["steps"]
            torch.set_rng_state(saved["random"])

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        parts = {"modules": self.modules.state_dict(), "optimiser": self.optimiser.state_dict(), "shadow": self.shadow}
        torch.save({**parts, "seconds": self.seconds, "steps": self.steps, "random": torch.get_rng_state()}, part)
        os.replace(part, self.path)

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Train until the minutes are over: warm up, then a cosine down to a twentieth of the rate."""
        saved_at = last = time.monotonic()
        recent: list[float] = []
        while self.seconds < 60 * self.minutes:
            done = self.seconds / (60 * self.minutes)
            rate = self.rate * min(1, (self.steps + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            loss = loss_of(self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimiser.step()
            self.steps += 1
            with torch.no_grad():
                decay = min(self.average, (1 + self.steps) / (10 + self.steps))
                for key, value in self.modules.state_dict().items():
                    self.shadow[key].lerp_(value, 1 - decay) if value.is_floating_point() else self.shadow[key].copy_(
                        value
                    )
            recent.append(loss.item())
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if self.steps % 50 == 0:
                self.write_log(sum(recent) / len(recent))
                recent = []
            if now - saved_at > SAVE_EVERY:
                self.save()
                saved_at = now
        self.save()

    def write_log(self, loss: float) -> None:
        new = not self.log.exists()
        with open(self.log, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "seconds", "loss"])
            writer.writerow([self.name, self.steps, round(self.seconds), f"{loss:.5f}"])

    def finished(self) -> dict[str, nn.Module]:
        """The modules with their averaged weights, not to be trained on."""
        self.modules.load_state_dict(self.shadow)
        return {name: module.eval().requires_grad_(False) for name, module in self.modules.items()}
