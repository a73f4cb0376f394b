"""bfloat16 and eight bits on a CPU: layers that multiply fewer bits than float32 has, by oneDNN.

`--dtype bfloat16`: activations and weights are bfloat16, sums float32, norms and softmax float32 inside; this file has
its convolutions. `--weights int8`: activations stay float32 and are quantized on their way into a product.
Measurements, errors and what each CPU has to have are in bench/LOG.md and `kernels/int8.py`.
"""

import torch
from torch import Tensor, nn

from fz.kernels.int8 import Conv8, Linear8, Quantized
from fz.model.layers import GEGLU, Conv3x3, Pointwise
from fz.model.twins import Conv3x3Twin, GEGLUTwin, LinearTwin, PointwiseTwin

# narrower layers are the first and the last, whose error nothing after them evens out
NARROWEST = 32
# quantizing an activation costs more than eight bits save where a product has fewer columns or rows (the miniature's)
LEAST_INT8 = 256


class Direct3x3:
    """x -> its 3x3 convolution by oneDNN's direct one, which reads a copy of the weight in an order of its own."""

    def __init__(self, plain: Conv3x3):
        self.bias, self.geometry = plain.bias, ([1, 1], list(plain.stride), [1, 1], 1)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(plain.weight.detach(), *self.geometry, None)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.geometry, "none", [], "")


class PackedConv3x3(Conv3x3Twin):
    """A 3x3 convolution with a packed copy of its weight."""

    def __init__(self, plain: Conv3x3):
        super().__init__(plain, Direct3x3(plain))


class Int8Linear(LinearTwin):
    """A linear layer whose inference multiplies eight bits."""

    def __init__(self, plain: nn.Linear, rows: int):
        super().__init__(plain, Linear8(plain.weight, plain.bias, rows))


class Int8Pointwise(PointwiseTwin):
    """The same of a 1x1 convolution of tokens."""

    def __init__(self, plain: Pointwise, rows: int):
        super().__init__(plain, Linear8(plain.weight.flatten(1), plain.bias, rows))


class Int8GEGLU(GEGLUTwin):
    """GEGLU whose two products take the same integers."""

    def __init__(self, plain: GEGLU, rows: int):
        super().__init__(plain, lambda weight, bias: Linear8(weight, bias, rows))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        integers = Quantized(x)
        return self.value(integers).mul_(self.gate(integers, then="gelu"))


class Int8Conv3x3(Conv3x3Twin):
    """A 3x3 convolution whose inference multiplies eight bits."""

    def __init__(self, plain: Conv3x3):
        super().__init__(plain, Conv8(plain.weight, plain.bias, plain.stride[0]))


REDUCED = (PackedConv3x3, Int8Linear, Int8Pointwise, Int8GEGLU, Int8Conv3x3)


def is_wide(conv: nn.Module, least: int = NARROWEST) -> bool:
    return isinstance(conv, Conv3x3) and min(conv.in_channels, conv.out_channels) >= least


def reads_prompts(layer: nn.Linear, text_channels: int) -> bool:
    """Does it make keys or values of prompts, as it does once a run?"""
    return layer.in_features == text_channels != layer.out_features


def takes_int8(name: str, layer: nn.Module, text_channels: int) -> bool:
    """Is a layer of those whose products are of eight bits under `--weights int8`? Those stay: narrow ones, the first
    and the last, the time embedding's, those of prompts, and attention's output, which is added to what passes it by.
    """
    if isinstance(layer, Conv3x3):
        return is_wide(layer, LEAST_INT8)
    if isinstance(layer, GEGLU):
        return layer.proj.in_features >= LEAST_INT8
    if isinstance(layer, Pointwise):
        return layer.in_channels >= LEAST_INT8
    if not isinstance(layer, nn.Linear) or min(layer.in_features, layer.out_features) < LEAST_INT8:
        return False
    stays = "time_emb" in name or "to_out" in name or "temporal" in name
    return not stays and not reads_prompts(layer, text_channels)


def int8_layer(name: str, layer: nn.Module, rows: int, text_channels: int) -> nn.Module | None:
    """What takes a layer's place under `--weights int8`; None for those that stay."""
    if not takes_int8(name, layer, text_channels):
        return None
    if isinstance(layer, Conv3x3):
        return Int8Conv3x3(layer)
    kinds = {GEGLU: Int8GEGLU, Pointwise: Int8Pointwise}
    return next((twin for plain, twin in kinds.items() if isinstance(layer, plain)), Int8Linear)(layer, rows)
