"""What does a whole edit take, exact and with `--fast`? `python -m bench.edit --fast` (SD's shapes, random weights)

The kinds of step that each run is made of are measured in turn, in one process, and summed as their schedules have
them: 50 steps of inversion and of editing, and 18 of which every second is whole, guided at the first half.
"""

import statistics
from collections.abc import Callable

import torch

from bench.steps import INDEX, Steps, measure
from fz.attention import Keep, Plain
from fz.edit import Edit, edit
from fz.guidance import Guidance
from fz.model import fast_cpu, fast_vae
from fz.model.deep import Deep, Reuse
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig, decode_clip, encode_clip
from fz.settings.config import Settings
from fz.settings.fast import FAST, fast_steps

EVERYTHING = Keep(True, True)


class Shallow:
    """A shallow step of so many branches: the full-size level over the features that a whole pass has left."""

    def __init__(self, steps: Steps, branches: int, reuse: Reuse):
        self.steps, self.deep = steps, Deep(reuse.outer)
        self.z = steps.z.expand(branches, *steps.z.shape)
        self.text = TextContext(steps.target.expand(branches, -1, -1))
        self()
        self.deep.shallow = True

    def __call__(self) -> torch.Tensor:
        return self.steps.unet(self.z, self.steps.t, self.text, Plain(INDEX), deep=self.deep)


@torch.no_grad()
def run(frames: int, size: int, rounds: int, config: UNetConfig, vae_config: VAEConfig) -> dict[str, float]:
    """Seconds of a run by 'exact' and 'fast', and of each kind of step; printed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(config).eval().to(memory_format=torch.channels_last)
        vae = VAE(vae_config).eval().to(memory_format=torch.channels_last)
    reuse, latent = Reuse.of(FAST["reuse"]), (size // 8, size // 8)
    exact, fast = Steps(unet, frames, size), Steps(unet, frames, size)
    exact.unet, line = fast_cpu.prepare(unet, latent, frames)
    fast.unet, of_fast = fast_cpu.prepare(unet, latent, frames, weights=FAST["weights"])
    print(f"exact: {line}\nfast: {of_fast}", flush=True)
    kept, kept_fast = exact.source(EVERYTHING), fast.source(EVERYTHING)
    pictures = torch.rand(frames, vae_config.in_channels, size, size) * 2 - 1
    z0 = encode_clip(vae, pictures)
    unguided = Guidance(fast.negative, 1.0)
    ways: dict[str, Callable[[], object]] = {
        "exact: inversion step": lambda: exact.invert(EVERYTHING),
        "exact: edit step": lambda: exact.edit(kept),
        "fast: inversion step": lambda: fast.invert(EVERYTHING),
        "fast: inversion step, shallow": Shallow(fast, 1, reuse),
        "fast: edit step": lambda: fast.edit(kept_fast),
        "fast: edit step, shallow": Shallow(fast, 2, reuse),
        "fast: edit step, one branch": lambda: edit(
            fast.model, kept_fast, Edit(fast.target, fast.task.fusion, fast.task.region), unguided
        ),
        "encode": lambda: encode_clip(fast_vae.prepare(vae, "encoder", latent), pictures),
        "decode": lambda: decode_clip(fast_vae.prepare(vae, "decoder", latent), z0),
    }
    taken = {name: statistics.median(times) for name, times in measure(ways, rounds).items()}
    taken["fast: edit step, one branch, shallow"] = taken["fast: inversion step, shallow"]
    both = taken["encode"] + taken["decode"]
    totals = {
        "exact": Settings.steps * (taken["exact: inversion step"] + taken["exact: edit step"]) + both,
        "fast": seconds_of_fast(taken, reuse, fast_steps(Settings.steps)) + both,
    }
    for name, seconds in (taken | totals).items():
        print(f"{name:40} {seconds:8.2f} s", flush=True)
    print(f"whole edit, {frames} frames at {size}: --fast is {totals['exact'] / totals['fast']:.2f} x as fast")
    return taken | totals


def seconds_of_fast(taken: dict[str, float], reuse: Reuse, steps: int) -> float:
    """Seconds of inversion's and the edit's steps under `--fast`."""
    total = 0.0
    for k in range(steps):
        shallow = "" if reuse.is_full(k, steps) else ", shallow"
        guided = reuse.before(k, steps) / steps < FAST["guidance_window"][1]
        total += taken["fast: inversion step" + shallow]
        total += taken["fast: edit step" + ("" if guided else ", one branch") + shallow]
    return total
