"""What makes a UNet fast on a CPU: packed linear layers, Winograd convolutions, memory that stays ours.

A fast UNet is another model with the same parameters, of which some modules are the ones defined here; they keep the
plain weights too, for state_dict and gradients. What each way costs and gains is in `gemm.py` and `winograd.py`;
measurements are in bench/LOG.md.
"""

import ctypes
import functools
import platform
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fz.kernels.gemm import Packed, multiplies_bfloat16, prefers_onednn
from fz.kernels.int8 import has_int8
from fz.kernels.winograd import Winograd, seconds_of, weight_bytes
from fz.memory.free import physical_memory
from fz.model.layers import GEGLU, Conv3x3, Pointwise
from fz.model.reduced_cpu import REDUCED, PackedConv3x3, int8_layer, is_wide, reads_prompts, takes_int8
from fz.model.swap import swapped
from fz.model.twins import Conv3x3Twin, GEGLUTwin, LinearTwin, PointwiseTwin
from fz.model.unet import UNet

TILES = (2, 4)
# channels below which Winograd's transforms cost more than the multiplications that it saves (bench/LOG.md)
LEAST_WINOGRAD = 192


class PackedLinear(LinearTwin):
    """A linear layer with a packed copy of its weight."""

    def __init__(self, plain: nn.Linear, rows: int):
        super().__init__(plain, Packed(plain.weight, plain.bias, rows))


class PackedPointwise(PointwiseTwin):
    """The same of a 1x1 convolution of tokens."""

    def __init__(self, plain: Pointwise, rows: int):
        super().__init__(plain, Packed(plain.weight.flatten(1), plain.bias, rows))


class PackedGEGLU(GEGLUTwin):
    """GEGLU as two packed products, gelu and multiplication done with them."""

    def __init__(self, plain: GEGLU, rows: int):
        super().__init__(plain, lambda weight, bias: Packed(weight, bias, rows))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.value.times(x, self.gate.gelu(x))


class WinogradConv3x3(Conv3x3Twin):
    """A 3x3 convolution with a copy of its weight transformed for tiles of m x m. rows: how many such tiles it usually
    sees.
    """

    def __init__(self, plain: Conv3x3, m: int, rows: int):
        super().__init__(plain, Winograd(plain.weight, plain.bias, m, rows))


FAST = (PackedLinear, PackedPointwise, PackedGEGLU, WinogradConv3x3, *REDUCED)


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
    unet: UNet,
    latent_size: tuple[int, int],
    frames: int,
    conv: str = "auto",
    budget: int | None = None,
    weights: str = "same",
) -> tuple[UNet, str]:
    """The UNet made fast for clips of so many frames and latents of that (h, w), and a line that says how and what it
    costs. The given one stays as it is; their parameters are the same.

    conv: 'auto' (3x3 convolutions as Winograd's, as far as `budget` bytes go; by default a quarter of the machine's
    memory, which does not vary from run to run), or 'direct'. weights: 'int8' multiplies eight bits where the CPU has
    them. Nothing is done unless the weights are float32 or bfloat16 on a CPU.
    """
    weight, rows = unet.conv_in.weight, frames * latent_size[0] * latent_size[1]
    if weights == "int8" and (weight.device.type, weight.dtype) != ("cpu", torch.float32):
        unet, line = prepare(unet, latent_size, frames, conv, budget)
        return unet, f"{line}; weights: int8 is for float32 on a CPU, and left out"
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        return of_bfloat16(unet, rows)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return unet, "convolutions: direct"
    keep_freed_memory()
    no_int8 = {"same": "", "int8": "; weights: int8 is left out, this CPU has no VNNI"}[weights]
    if weights == "int8" and has_int8():
        fast, line = of_int8(unet, rows)
        if line:
            return fast, line
        no_int8 = "; weights: int8 is left out, this model's layers are too narrow to gain from it"
    packs = prefers_onednn()
    sites = convolutions(unet, latent_size)
    budget = total_memory() // 4 if budget is None else budget
    chosen = {} if conv == "direct" else {id(s.conv): (s, m) for s, m in choose(sites, frames, budget)}

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        if id(layer) in chosen:
            site, m = chosen[id(layer)]
            return WinogradConv3x3(layer, m, rows=frames * -(-site.h // m) * -(-site.w // m))
        return packed_layer(name, layer, rows, unet.config.cross_attention_dim) if packs else None

    fast = swapped(unet, replace)
    packed = sum(packed_bytes(layer) for layer in fast.modules())
    linear = f"linear layers: packed for oneDNN ({packed / 1e9:.2f} GB)" if packed else "linear layers: plain"
    linear += no_int8
    if not chosen:
        return fast, f"{linear}; convolutions: direct"
    tiles = [m for _, m in chosen.values()]
    spent = sum(site.bytes(m) for site, m in chosen.values())
    counts = f"{tiles.count(4)} Winograd F(4,3), {tiles.count(2)} F(2,3) ({spent / 1e9:.2f} GB)"
    return fast, f"{linear}; convolutions: {counts}, {len(sites) - len(tiles)} direct"


def of_bfloat16(unet: UNet, rows: int) -> tuple[UNet, str]:
    """A UNet of bfloat16 made fast: everything packed, convolutions direct, which beat Winograd's of float32 there."""
    if not multiplies_bfloat16():
        return unet, "bfloat16: this CPU has no products of it, float32 is faster; convolutions: direct"
    keep_freed_memory()

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        if is_wide(layer):
            return PackedConv3x3(layer)
        return packed_layer(name, layer, rows, unet.config.cross_attention_dim)

    return swapped(unet, replace), "bfloat16: linear layers and convolutions packed for oneDNN"


def of_int8(unet: UNet, rows: int) -> tuple[UNet, str]:
    """A UNet of float32 whose large products are of eight bits; the others are packed where that pays. No line where
    no layer is large enough.
    """
    packs, text_channels = prefers_onednn(), unet.config.cross_attention_dim
    if not any(takes_int8(name, layer, text_channels) for name, layer in unet.named_modules()):
        return unet, ""

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        eight = int8_layer(name, layer, rows, text_channels)
        return eight or (packed_layer(name, layer, rows, text_channels) if packs else None)

    fast = swapped(unet, replace)
    of_eight = sum(isinstance(layer, REDUCED) for layer in fast.modules())
    rest = "attention's output, the time's, the first and the last in float32"
    return fast, f"int8: {of_eight} layers; {rest}"


def packed_layer(name: str, layer: nn.Module, rows: int, text_channels: int) -> nn.Module | None:
    """The packed layer in a linear layer's place; None for those that have nothing to gain."""
    if isinstance(layer, GEGLU):
        return PackedGEGLU(layer, rows)
    if isinstance(layer, Pointwise):
        return PackedPointwise(layer, rows)
    # the time embedding has a row a frame; keys and values of a prompt are computed once a run
    of_time = "time_embedding." in name or name.endswith("time_emb_proj")
    if not isinstance(layer, nn.Linear) or of_time or reads_prompts(layer, text_channels):
        return None
    return PackedLinear(layer, rows)


def packed_bytes(layer: nn.Module) -> int:
    """Memory of a packed layer's second copy of its weights."""
    if not isinstance(layer, (PackedLinear, PackedPointwise, PackedGEGLU)):
        return 0
    return sum(4 * p.numel() for p in layer.parameters())


def signature(unet: nn.Module) -> list[tuple[str, str | int]]:
    """Which layers of a UNet are fast ones, and which: what its results, to the last bit, depend on."""
    fast = [(name, layer) for name, layer in unet.named_modules() if isinstance(layer, FAST)]
    return [(n, x.product.m if isinstance(x, WinogradConv3x3) else type(x).__name__) for n, x in fast]


def convolutions(unet: UNet, latent_size: tuple[int, int]) -> list[Site3x3]:
    """The UNet's 3x3 convolutions of stride 1 that are wide enough."""
    found = []

    def visit(module: nn.Module, level: int) -> None:
        for conv in module.modules():
            if is_wide(conv, LEAST_WINOGRAD) and conv.stride == (1, 1):
                found.append(Site3x3(conv, latent_size[0] >> level, latent_size[1] >> level))

    deepest = len(unet.down_blocks) - 1
    for level, block in enumerate(unet.down_blocks):
        visit(block, level)
    visit(unet.mid_block, deepest)
    for i, block in enumerate(getattr(unet, "up_blocks", ())):
        visit(block.resnets, deepest - i)
        # an upsampler convolves after it has doubled the sides
        visit(getattr(block, "upsamplers", nn.ModuleList()), deepest - i - 1)
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
    """Bytes of RAM of this machine, or what is usual where the system does not tell."""
    return physical_memory() or 16 * 10**9
