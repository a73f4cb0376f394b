"""One step of each kind on random latents, for benches: by a UNet of ours or diffusers', by which kernels, in turn."""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench.here import seconds
from fz.attention import MAP_STRIDE, Keep
from fz.ddim import CLEAN, Schedule
from fz.denoiser import Denoiser
from fz.edit import Edit, edit, invert
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.guidance import Guidance
from fz.masks import EditRegion
from fz.memory.kept import KeptInMemory
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.source import Source, Store

WORDS = 77
INDEX = FrameIndex((0, "mid"))
SMALL = UNetConfig(block_out_channels=(32, 64, 96, 96), cross_attention_dim=32)


class Steps:
    """One step of each kind on the same clip, as functions to be timed."""

    def __init__(self, unet: UNet, frames: int, size: int):
        torch.manual_seed(0)
        side = size // 8
        self.unet, self.schedule = unet, Schedule.from_config({}, 50)
        self.source_prompt, self.target, self.negative = (
            torch.randn(WORDS, unet.config.cross_attention_dim) for _ in range(3)
        )
        self.z = torch.randn(frames, 4, side, side)
        self.t = self.schedule.timesteps[0]
        # one step of a schedule with one step: invert and edit then do just that
        self.one = Schedule((self.t,), self.schedule.alpha_bars, self.schedule.clean_alpha_bar)
        words = torch.zeros(WORDS)
        words[3:6] = 1
        alpha = torch.ones(WORDS)
        alpha[3:6] = 0
        fusion = Fusion(torch.diag(alpha), alpha, torch.ones(WORDS), torch.ones(2, WORDS), (0, 1))
        self.task, self.guidance = Edit(self.target, fusion, EditRegion(words)), Guidance(self.negative)
        self.maps = torch.rand(frames, (side // MAP_STRIDE) ** 2, WORDS)

    @property
    def model(self) -> Denoiser:
        return Denoiser(self.unet, self.one, INDEX)

    def forward(self) -> Tensor:
        return self.unet(self.z[None], self.t, TextContext(self.source_prompt[None]))

    def invert(self, keep: Keep = Keep()) -> Source:  # noqa: B008 (frozen)
        store = KeptInMemory() if keep.self_sites else Store()
        return invert(self.model, Source(self.source_prompt, {CLEAN: self.z}, store=store, keep=lambda k: keep))

    def source(self, keep: Keep) -> Source:
        source = self.invert(keep)
        source.maps[self.t] = self.maps  # a random model's own mask is all or nothing: these make a mixed one
        return source

    def edit(self, source: Source) -> Tensor:
        return edit(self.model, source, self.task, self.guidance)


def diffusers_unet(unet: UNet) -> nn.Module | None:
    """diffusers' model with the same weights, or None where it is not installed."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        return None
    c = unet.config
    with torch.device("meta"):
        model = UNet2DConditionModel(
            block_out_channels=c.block_out_channels,
            layers_per_block=c.layers_per_block,
            attention_head_dim=c.heads[0],
            cross_attention_dim=c.cross_attention_dim,
            norm_num_groups=c.norm_num_groups,
        )
    model.load_state_dict(unet.state_dict(), assign=True)
    return model.eval()


@contextlib.contextmanager
def kernels(name: str) -> Iterator[None]:
    """FZ_KERNELS for the time of a block."""
    before = os.environ.get("FZ_KERNELS")
    os.environ["FZ_KERNELS"] = name
    try:
        yield
    finally:
        os.environ.pop("FZ_KERNELS")
        if before is not None:
            os.environ["FZ_KERNELS"] = before


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, the ways taking turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            elapsed = seconds(way)
            if i:
                times[name].append(elapsed)
    return times
