"""`--compile`: the layers of a step that take most of its time outside attention, by torch.compile.

ResNet blocks and feed-forwards are compiled, each shape once. Attention stays as it is: its function is Python's, and
its kernels are compiled already. A CPU gained nothing (bench/LOG.md): there nothing is compiled.
"""

import importlib.util
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from fz.model.layers import FeedForward, ResnetBlock

# a UNet has fewer shapes of blocks than this; torch's own limit is 8 a function, after which it silently stops
# compiling
SHAPES = 256


class HasModules(Protocol):
    def modules(self) -> Iterable[nn.Module]: ...


def compile_step(unet: HasModules, device: torch.device) -> str:
    """Compile the layers of a UNet, whole or in chunks; returns a line that says what was done, or why nothing was."""
    reason = cannot(device)
    if reason:
        return f"compile: left out, {reason}"
    return f"compile: {compile_layers(unet.modules(), 'inductor')} layers, each shape when it is first seen"


def cannot(device: torch.device) -> str | None:
    """Why a step is not compiled on this device; None if it can be."""
    if device.type != "cuda":
        return f"on {device.type} it gains nothing"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def compile_layers(modules: Iterable[nn.Module], backend: str) -> int:
    """Compile those that are worth it, in place; parameters keep their names. Returns how many."""
    import torch._dynamo

    for limit in ("recompile_limit", "cache_size_limit"):  # the second is torch 2.4's name
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, SHAPES)
    layers = [m for m in modules if isinstance(m, (ResnetBlock, FeedForward))]
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)
    return len(layers)
