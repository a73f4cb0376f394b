"""Layers that have a plain layer's parameters and in inference multiply in another way; with gradients they are the
plain layer. What multiplies, `product`, has copies of the weights of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fz.model.layers import GEGLU, Conv3x3, Pointwise

Product = Callable[..., Tensor]


class LinearTwin(nn.Linear):
    def __init__(self, plain: nn.Linear, product: Product):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias, self.product = plain.weight, plain.bias, product

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


class PointwiseTwin(Pointwise):
    def __init__(self, plain: Pointwise, product: Product):
        super().__init__(plain.in_channels, plain.out_channels, 1, device="meta")
        self.weight, self.bias, self.product = plain.weight, plain.bias, product

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


class GEGLUTwin(GEGLU):
    """GEGLU as two products, of a weight and a bias each: `value` and `gate`. How they are joined is its own kinds'."""

    def __init__(self, plain: GEGLU, product: Callable[[Tensor, Tensor], Any]):
        with torch.device("meta"):
            super().__init__(plain.proj.in_features, plain.proj.out_features // 2)
        self.proj = plain.proj
        halves = zip(plain.proj.weight.chunk(2), plain.proj.bias.chunk(2), strict=True)
        self.value, self.gate = (product(weight, bias) for weight, bias in halves)


class Conv3x3Twin(Conv3x3):
    def __init__(self, plain: Conv3x3, product: Product):
        with torch.device("meta"):
            super().__init__(plain.in_channels, plain.out_channels, plain.stride[0], plain.temporal)
        self.weight, self.bias, self.product = plain.weight, plain.bias, product
        if plain.temporal is not None:
            self.conv_temporal = plain.conv_temporal

    def convolve(self, x: Tensor) -> Tensor:
        return super().convolve(x) if torch.is_grad_enabled() else self.product(x)
