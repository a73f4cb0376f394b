"""How many bytes do processes that share a clip give each other at a step? Counted on paper, from the model's shape.

Nothing is run: the numbers follow from which frames read which (eq. 8), how many norms there are, and where a tuned
model's layers over time are. `fz.run --shard` prints what it gave; tests hold the two against each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fz.attention import FUSED_FROM_STRIDE, MAP_STRIDE
from fz.frames import FrameIndex
from fz.model.layers import Site
from fz.model.unet import Temporal, UNetConfig
from fz.ranks import Alone

MOMENTS = 2 * 8  # a mean and a mean square, float64
TOKENS = 77


@dataclass(frozen=True)
class Split:
    """A clip of so many frames on so many processes. latent: (h, w); element: bytes of a number of activations."""

    frames: int
    world: int
    latent: tuple[int, int]
    element: int = 2

    @property
    def blocks(self) -> list[range]:
        alone = Alone()
        alone.world = self.world
        return alone.blocks(self.frames)

    def pixels(self, stride: int) -> int:
        return self.latent[0] * self.latent[1] // stride**2


@dataclass(frozen=True)
class Step:
    """One forward pass. branches: prompts; fused: self-attention of the last branch is the source's; masked: where
    blend masks say; maps: are cross-attention maps gathered?
    """

    branches: int
    fused: bool = False
    masked: bool = False
    maps: bool = False


def self_sites(config: UNetConfig) -> Iterator[Site]:
    """The self-attention sites."""
    depth = len(config.block_out_channels)
    for level, channels in enumerate(config.block_out_channels):
        down, up = config.down_attention[level], config.up_attention[depth - 1 - level]
        count = config.layers_per_block * down + (config.layers_per_block + 1) * up + (level == depth - 1)
        for i in range(count):
            yield Site(f"{level}.{i}", "self", 2**level, channels)


def convolutions(config: UNetConfig) -> Iterator[tuple[int, int]]:
    """(channels, stride) of what each 3x3 convolution gives: a layer over time follows it in tuned models."""
    channels, depth = config.block_out_channels, len(config.block_out_channels)
    yield channels[0], 1
    for level, c in enumerate(channels):
        resnets = 2 * config.layers_per_block + 1  # of both halves of the UNet
        yield from [(c, 2**level)] * (2 * resnets)
        if level < depth - 1:
            yield c, 2 ** (level + 1)  # down, and up from the level below to this one
            yield channels[level + 1], 2**level
    yield from [(channels[-1], 2 ** (depth - 1))] * 4
    yield config.out_channels, 1


def parts(config: UNetConfig, clip_norm: bool, index: FrameIndex, split: Split, step: Step) -> dict[str, int]:
    """Bytes that all processes together give to others in one pass, by what they are."""
    others, found = split.world - 1, {}
    if clip_norm:
        resnets = 2 * (2 * config.layers_per_block + 1) * len(config.block_out_channels) // 2 + 2
        norms = 2 * resnets + 1
        found["moments"] = norms * split.world * others * step.branches * config.norm_num_groups * MOMENTS
    keys = 0
    for site in self_sites(config):
        table = index.table(site, split.frames)
        lacking = sum(
            len(set(table[block.start : block.stop].flatten().tolist()) - set(block)) for block in split.blocks
        )
        # without a mask the last branch's own keys are never made
        without = step.fused and not step.masked and site.stride >= FUSED_FROM_STRIDE
        tensors = (step.branches - without) + step.branches
        keys += lacking * tensors * split.pixels(site.stride) * site.channels * split.element
    found["keys and values"] = keys
    found |= over_time(config, split, step.branches)
    found["noise"] = others * step.branches * split.frames * config.in_channels * split.pixels(1) * 4
    if step.maps:
        found["maps"] = others * split.frames * split.pixels(MAP_STRIDE) * TOKENS * 4
    return found


def over_time(config: UNetConfig, split: Split, branches: int) -> dict[str, int]:
    """What a tuned model's layers over time read of other processes' frames."""
    temporal, found = config.temporal, {}
    if temporal is None:
        return found
    if temporal.conv is not None:
        edges = 2 * (split.world - 1) * branches * split.element
        found["convolutions over time"] = sum(
            edges * split.pixels(stride) * (channels + (temporal.rank_of(channels) or 0))
            for channels, stride in convolutions(config)
        )
    if temporal.attention:
        moved = 0
        for site in self_sites(config):
            pixels = split.pixels(site.stride)
            ends = [pixels * r // split.world for r in range(split.world + 1)]
            own = [b - a for a, b in zip(ends, ends[1:], strict=False)]
            there = sum(len(block) * (pixels - n) for block, n in zip(split.blocks, own, strict=True))
            back = sum((split.frames - len(block)) * n for block, n in zip(split.blocks, own, strict=True))
            moved += (there + back) * site.channels
        found["temporal attention"] = moved * branches * split.element
    return found


INDEXES = ((0, "mid"), (-1, "first"), (-1, 1, "first", "last"))
LOW_RANK = Temporal(True, "low_rank", ((4, 2), (320, 160), (640, 320), (1280, 640)))


def table(split: Split) -> str:
    """Megabytes a step of Stable Diffusion v1's UNet, of all processes together, as a Markdown table."""
    lines = ["| frames read | checkpoint | inversion | edit, no mask | edit, masked | of it keys, values | moments |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for temporal in (None, LOW_RANK):
        for entries in INDEXES:
            config, index = UNetConfig(temporal=temporal), FrameIndex(entries)
            steps = (Step(1, maps=True), Step(2, fused=True), Step(2, fused=True, masked=True))
            counted = [parts(config, True, index, split, step) for step in steps]
            megabytes = [f"{sum(found.values()) / 1e6:.1f}" for found in counted]
            masked = counted[-1]
            told = [f"{masked['keys and values'] / 1e6:.1f}", f"{masked['moments'] / 1e6:.2f}"]
            name = ", ".join(map(str, entries))
            lines.append(f"| `{name}` | {'tuned' if temporal else 'untuned'} | {' | '.join([*megabytes, *told])} |")
    return "\n".join(lines)
