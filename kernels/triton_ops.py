"""The Triton versions of `fz.kernels`' two functions."""

from fz.kernels.triton_cross import cross_attention
from fz.kernels.triton_self import self_attention

__all__ = ["cross_attention", "self_attention"]
