"""Products of eight bits on a CPU (W8A8): weights quantized once, each output channel by its own scale, activations
each time, by the smallest and the largest value that they have.

x ≈ s (x_q - z) with x_q in 0 … 255, weight ≈ s_w w_q with w_q in -127 … 127. oneDNN multiplies the integers, adds in
int32 and gives float32. Fast where the CPU has VNNI (or AMX). Inference only.
"""

import math
import warnings

import torch
from torch import Tensor

OPERATIONS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv_pointwise")


def has_int8() -> bool:
    """Has this CPU instructions for products of eight bits, and this PyTorch oneDNN's use of them?"""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch, "quantize_per_tensor"):
        return False
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return vnni() and all(hasattr(torch.ops.onednn, name) for name in OPERATIONS)


class Quantized:
    """x as integers: x ≈ scale (values - zero)."""

    def __init__(self, x: Tensor):
        low, high = (float(v) for v in torch.aminmax(x))
        if not math.isfinite(high - low):
            # what is not finite stays so, and is found behind the last layer
            self.scale, self.zero, self.values = math.nan, 0, torch.zeros_like(x, dtype=torch.uint8)
            return
        # zero is a value: padding is exact
        low, high = min(low, 0.0), max(high, 0.0)
        self.scale = max(high - low, 1e-12) / 255
        self.zero = round(-low / self.scale)
        with warnings.catch_warnings():
            # the type is to go, the operation that makes it is the only one that takes one pass
            warnings.simplefilter("ignore")
            self.values = torch.quantize_per_tensor(x, self.scale, self.zero, torch.quint8).int_repr()


def of_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (C_out, …) as int8, symmetric, and the scale of each output channel."""
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scale


class Linear8:
    """x -> x weightᵀ + bias, weight (C_out, C_in) float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        values, self.scale = of_channels(weight.detach())
        self.weight = torch.ops.onednn.qlinear_prepack(values, [rows, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor | Quantized, then: str = "none") -> Tensor:
        """then: 'none' or 'gelu', done in the same pass."""
        if isinstance(x, Tensor) and not x.numel():
            # of no branch: an unguided step's queries where fusion needs the source's alone
            return x.new_empty(*x.shape[:-1], len(self.zeros))
        q = x if isinstance(x, Quantized) else Quantized(x)
        return torch.ops.onednn.qlinear_pointwise(
            q.values, q.scale, q.zero, self.weight, self.scale, self.zeros, self.bias, 1.0, 0, torch.float32, then, [],
            "none" if then == "gelu" else "",
        )  # fmt: skip


class Conv8:
    """A 3x3 convolution, stride 1 or 2, zero padding 1: (B, C_in, H, W) -> (B, C_out, H', W'), channels_last."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int):
        values, self.scale = of_channels(weight.detach())
        self.geometry = [stride, stride], [1, 1], [1, 1], 1
        self.weight = torch.ops.onednn.qconv_prepack(values, self.scale, 1.0, 0, *self.geometry, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        q = Quantized(x)
        return torch.ops.onednn.qconv_pointwise(
            q.values, q.scale, q.zero, self.weight, self.scale, self.zeros, self.bias, *self.geometry,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
