"""Layers with large workspaces, so many frames at a time: a model's memory then grows less with the clip."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fz.model.layers import Conv3x3, FeedForward
from fz.model.swap import swapped
from fz.model.unet import UNet


def some_frames_at_once(unet: UNet, at_once: int) -> UNet:
    """The UNet whose 3x3 convolutions and feed-forwards take so many frames at a time. The given one stays as it is."""

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, Conv3x3):
            return ConvInParts(layer, at_once)
        return FeedForwardInParts(layer, at_once) if isinstance(layer, FeedForward) else None

    return swapped(unet, replace)


def in_parts(layer: Callable[[Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
    """layer(x), so many frames of x (B·F, …) at a time, so that its workspace does not grow with the clip."""
    if len(x) <= at_once:
        return layer(x)
    first = layer(x[:at_once])
    layout = (
        torch.channels_last
        if first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    out = torch.empty((len(x), *first.shape[1:]), dtype=first.dtype, device=first.device, memory_format=layout)
    out[:at_once] = first
    for start in range(at_once, len(x), at_once):
        out[start : start + at_once] = layer(x[start : start + at_once])
    return out


class ConvInParts(nn.Module):
    """A 3x3 convolution of some frames at a time; over time, where it has that, of all."""

    def __init__(self, conv: Conv3x3, at_once: int):
        super().__init__()
        self.conv, self.at_once = conv, at_once

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.conv.over_time(in_parts(self.conv.convolve, x, self.at_once), frames)


class FeedForwardInParts(nn.Module):
    """A feed-forward of some frames at a time."""

    def __init__(self, layer: FeedForward, at_once: int):
        super().__init__()
        self.layer, self.at_once = layer, at_once

    def forward(self, x: Tensor) -> Tensor:
        return in_parts(self.layer, x.flatten(0, 1), self.at_once).unflatten(0, x.shape[:2])
