"""bfloat16 and eight bits on a CPU: layers that multiply fewer bits than float32 has, by oneDNN.

`--dtype bfloat16`: activations and weights are bfloat16, sums float32, norms and softmax float32 inside; this file has
its convolutions. `--weights int8`: activations stay float32 and are quantized on their way into a product.
Measurements, errors and what each CPU has to have are in bench/LOG.md and `kernels/int8.py`.
"""

import torch
from torch import Tensor, nn

from fz.kernels.int8 import Conv8, Linear8, Quantized
from fz.model.layers import GEGLU, Conv3x3, Pointwise

# narrower layers are the first and the last, whose error nothing after them evens out
NARROWEST = 32
# quantizing an activation costs more than eight bits save where a product has fewer columns or rows (the miniature's)
LEAST_INT8 = 256


class PackedConv3x3(Conv3x3):
    """A 3x3 convolution with a copy of its weight in the order that oneDNN's direct convolution reads; with gradients
    it is the plain one.
    """

    def __init__(self, plain: Conv3x3):
        with torch.device("meta"):
            super().__init__(plain.in_channels, plain.out_channels, plain.stride[0], plain.temporal)
        self.weight, self.bias = plain.weight, plain.bias
        if plain.temporal is not None:
            self.conv_temporal = plain.conv_temporal
        self.geometry = [1, 1], list(plain.stride), [1, 1], 1
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(plain.weight.detach(), *self.geometry, None)

    def convolve(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().convolve(x)
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.geometry, "none", [], "")


class Int8Linear(nn.Linear):
    """A linear layer whose inference multiplies eight bits."""

    def __init__(self, plain: nn.Linear, rows: int):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.product = Linear8(plain.weight, plain.bias, rows)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


class Int8Pointwise(Pointwise):
    """The same of a 1x1 convolution of tokens."""

    def __init__(self, plain: Pointwise, rows: int):
        super().__init__(plain.in_channels, plain.out_channels, 1, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.product = Linear8(plain.weight.flatten(1), plain.bias, rows)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


class Int8GEGLU(GEGLU):
    """GEGLU whose two products take the same integers."""

    def __init__(self, plain: GEGLU, rows: int):
        with torch.device("meta"):
            super().__init__(plain.proj.in_features, plain.proj.out_features // 2)
        self.proj = plain.proj
        halves = zip(plain.proj.weight.chunk(2), plain.proj.bias.chunk(2), strict=True)
        self.value, self.gate = (Linear8(weight, bias, rows) for weight, bias in halves)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        integers = Quantized(x)
        return self.value(integers).mul_(self.gate(integers, then="gelu"))


class Int8Conv3x3(Conv3x3):
    """A 3x3 convolution whose inference multiplies eight bits."""

    def __init__(self, plain: Conv3x3):
        with torch.device("meta"):
            super().__init__(plain.in_channels, plain.out_channels, plain.stride[0], plain.temporal)
        self.weight, self.bias = plain.weight, plain.bias
        if plain.temporal is not None:
            self.conv_temporal = plain.conv_temporal
        self.product = Conv8(plain.weight, plain.bias, plain.stride[0])

    def convolve(self, x: Tensor) -> Tensor:
        return super().convolve(x) if torch.is_grad_enabled() else self.product(x)


REDUCED = (PackedConv3x3, Int8Linear, Int8Pointwise, Int8GEGLU, Int8Conv3x3)


def is_wide(conv: nn.Module, least: int = NARROWEST) -> bool:
    return isinstance(conv, Conv3x3) and min(conv.in_channels, conv.out_channels) >= least


def int8_layer(name: str, layer: nn.Module, rows: int, text_channels: int) -> nn.Module | None:
    """What takes a layer's place under `--weights int8`; None for those that stay: narrow ones, the first and the last,
    the time embedding's, those of prompts, and attention's output, which is added to what passes it by.
    """
    if is_wide(layer, LEAST_INT8):
        return Int8Conv3x3(layer)
    if isinstance(layer, GEGLU):
        return Int8GEGLU(layer, rows) if layer.proj.in_features >= LEAST_INT8 else None
    if isinstance(layer, Pointwise):
        return Int8Pointwise(layer, rows) if layer.in_channels >= LEAST_INT8 else None
    if isinstance(layer, nn.Linear) and min(layer.in_features, layer.out_features) < LEAST_INT8:
        return None
    stays = "time_emb" in name or "to_out" in name or "temporal" in name
    if not isinstance(layer, nn.Linear) or stays or layer.in_features == text_channels != layer.out_features:
        return None
    return Int8Linear(layer, rows)
