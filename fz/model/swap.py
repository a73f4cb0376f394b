"""A model with other modules in the place of some: how one is made fast, or bounded in memory, and stays as it is."""

import copy
from collections.abc import Callable

from torch import nn


def swapped(model: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None], name: str = "") -> nn.Module:
    """A model that shares the parameters of this one, which stays as it is.

    replace: (a module's name, the module) -> what takes its place, or None to look at its children.
    """
    other = replace(name, model)
    if other is not None:
        return other
    twin = copy.copy(model)
    # what torch.compile made of the model calls the model's own modules
    twin._compiled_call_impl = None
    twin._modules = {
        key: child and swapped(child, replace, f"{name}.{key}" if name else key)
        for key, child in model._modules.items()
    }
    return twin
