"""Matrix products with a fixed right-hand side on a CPU: the weight is packed once, for oneDNN, and multiplied many times.

PyTorch sends float32 products to MKL, which runs at less than half of oneDNN's speed on CPUs that are not Intel's. Which of the two a
machine prefers is measured once. Packing costs a second copy of the weight. Inference in float32 only.
"""

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# below this gain packing is not worth its memory, and a noisy measurement must not decide
GAIN = 1.25


class Packed:
    """x -> x weightᵀ + bias with weight (C_out, C_in) float32 in oneDNN's own order; rows: how many rows x will usually have."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, rows: int = 1024):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(x weightᵀ + bias), exact gelu, in one pass."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x weightᵀ + bias) ⊙ other, in one pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")


def onednn_gain() -> float:
    """How many times as fast as MKL's oneDNN's product is here, measured once; 0 where this PyTorch has no packed product."""
    return _onednn_gain(torch.get_num_threads())


@functools.cache
def _onednn_gain(threads: int) -> float:
    try:
        with torch.inference_mode():
            x, weight = torch.ones(1024, 640), torch.ones(640, 640)
            packed = Packed(weight, rows=len(x))
            # alternating, and the best of each: other programs can only make one slower
            ours, mkl = zip(
                *((seconds(lambda: packed(x)), seconds(lambda: F.linear(x, weight))) for _ in range(9)), strict=True
            )
            return min(mkl) / min(ours)
    except (AttributeError, RuntimeError, NotImplementedError):
        return 0.0


def prefers_onednn() -> bool:
    return onednn_gain() > GAIN


def seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start
