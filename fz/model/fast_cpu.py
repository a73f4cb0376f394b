"""What makes a UNet fast on a CPU, done once after loading: packed linear layers, Winograd convolutions, memory that
stays ours.

Weights themselves are not changed, so that a model can be prepared again for another size. What each way costs and
gains is in `gemm.py` and `winograd.py`; measurements are in bench/LOG.md.
"""

import ctypes
import functools
import os
import platform
from dataclasses import dataclass

import torch

from fz.kernels.gemm import prefers_onednn
from fz.kernels.winograd import Winograd, seconds_of, weight_bytes
from fz.model.layers import GEGLU, Conv3x3, Linear, Pointwise
from fz.model.unet import UNet

TILES = (2, 4)
# narrower layers (the first and the last) have no product worth the transforms
NARROWEST = 32


@dataclass(frozen=True)
class Site3x3:
    """One convolution and the sides of its output."""

    conv: Conv3x3
    h: int
    w: int

    def gain(self, m: int, frames: int) -> float:
        """Seconds that Winograd's F(m, 3) saves on a forward pass, by the model of `winograd.seconds_of`."""
        shape = (self.conv.out_channels, self.conv.in_channels, self.h, self.w, frames)
        return seconds_of(*shape, m=0) - seconds_of(*shape, m=m)

    def bytes(self, m: int) -> int:
        return weight_bytes(self.conv.out_channels, self.conv.in_channels, m)


def prepare(
    unet: UNet, latent_size: tuple[int, int], frames: int, conv: str = "auto", budget: int | None = None
) -> str:
    """Prepare a UNet for clips of so many frames and latents of that (h, w). Returns a line that says what was done and
    what it costs.

    conv: 'auto' (3x3 convolutions as Winograd's, as far as `budget` bytes go; by default a quarter of the machine's
    memory, which does not vary from run to run), or 'direct'. Nothing is done unless the weights are float32 on a CPU.
    """
    weight = unet.conv_in.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return "convolutions: direct"
    keep_freed_memory()
    unpack(unet)
    packed = 0
    if prefers_onednn():
        rows = frames * latent_size[0] * latent_size[1]
        for layer in unet.modules():
            if isinstance(layer, (Linear, Pointwise, GEGLU)) and not is_text_side(layer, unet):
                layer.pack(rows)
                packed += sum(4 * p.numel() for p in layer.parameters(recurse=isinstance(layer, GEGLU)))
    linear = f"linear layers: packed for oneDNN ({packed / 1e9:.2f} GB)" if packed else "linear layers: plain"
    if conv == "direct":
        return f"{linear}; convolutions: direct"
    chosen = choose(convolutions(unet, latent_size), frames, total_memory() // 4 if budget is None else budget)
    for site, m in chosen:
        site.conv.winograd = Winograd(
            site.conv.weight, site.conv.bias, m, rows=frames * -(-site.h // m) * -(-site.w // m)
        )
    spent = sum(site.bytes(m) for site, m in chosen)
    count = {m: sum(m == chosen_m for _, chosen_m in chosen) for m in TILES}
    direct = len(convolutions(unet, latent_size)) - len(chosen)
    return (
        f"{linear}; convolutions: {count[4]} Winograd F(4,3), {count[2]} F(2,3) ({spent / 1e9:.2f} GB), {direct} direct"
    )


def signature(unet: UNet) -> list:
    """Which fast ways a prepared UNet takes: what its results, to the last bit, depend on."""
    layers = [layer for layer in unet.modules() if isinstance(layer, (Linear, Pointwise, GEGLU, Conv3x3))]
    return [
        layer.winograd.m if getattr(layer, "winograd", None) else bool(getattr(layer, "packed", None))
        for layer in layers
    ]


def unpack(unet: UNet) -> None:
    """Back to plain layers."""
    for layer in unet.modules():
        if isinstance(layer, (Linear, Pointwise, GEGLU)):
            layer.packed = None
        if isinstance(layer, Conv3x3):
            layer.winograd = None


def is_text_side(layer: torch.nn.Module, unet: UNet) -> bool:
    """Keys and values of a prompt are computed once a run: nothing to gain."""
    return isinstance(layer, Linear) and layer.in_features == unet.config.cross_attention_dim != layer.out_features


def convolutions(unet: UNet, latent_size: tuple[int, int]) -> list[Site3x3]:
    """The UNet's 3x3 convolutions of stride 1 that are wide enough."""
    found = []

    def visit(module: torch.nn.Module, level: int) -> None:
        for conv in module.modules():
            if (
                isinstance(conv, Conv3x3)
                and conv.stride == (1, 1)
                and min(conv.in_channels, conv.out_channels) >= NARROWEST
            ):
                found.append(Site3x3(conv, latent_size[0] >> level, latent_size[1] >> level))

    deepest = len(unet.down_blocks) - 1
    for level, block in enumerate(unet.down_blocks):
        visit(block, level)
    visit(unet.mid_block, deepest)
    for i, block in enumerate(unet.up_blocks):
        visit(block.resnets, deepest - i)
        # an upsampler convolves after it has doubled the sides
        visit(getattr(block, "upsamplers", torch.nn.ModuleList()), deepest - i - 1)
    return found


def choose(sites: list[Site3x3], frames: int, budget: int) -> list[tuple[Site3x3, int]]:
    """The tile of each convolution that takes one: most seconds saved per byte first, as far as `budget` bytes go."""
    best = [(site, max(TILES, key=lambda m, site=site: site.gain(m, frames))) for site in sites]
    # a tile that saves almost as much for less than half of the memory comes first where memory is short
    if sum(site.bytes(m) for site, m in best) > budget:
        best = [(site, max(TILES, key=lambda m, site=site: site.gain(m, frames) / site.bytes(m))) for site in sites]
    chosen = []
    for site, m in sorted(best, key=lambda pair: -pair[0].gain(pair[1], frames) / pair[0].bytes(pair[1])):
        if site.gain(m, frames) > 0 and site.bytes(m) <= budget:
            budget -= site.bytes(m)
            chosen.append((site, m))
    return chosen


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory rather than return it to the system.

    It would ask for every activation anew, and the kernel would clear every page of it: a tenth of a step's time.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def total_memory() -> int:
    """Bytes of RAM of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 16 * 10**9
