"""The Triton versions of `fz.kernels`' functions."""

from fz.kernels.triton_cross import cross_attention
from fz.kernels.triton_norm import group_norm
from fz.kernels.triton_self import self_attention

__all__ = ["cross_attention", "group_norm", "self_attention"]
