"""A model with other modules in the place of some: how one is made fast, or bounded in memory, and stays as it is."""

import copy
from collections.abc import Callable, Iterator

from torch import nn

from fz.model.layers import Site
from fz.model.unet import UNet


class StandIn:
    """Called in a UNet's place, `unet`; asked for its layers, it answers with that one's."""

    unet: UNet

    def sites(self) -> list[Site]:
        return self.unet.sites()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        return self.unet.named_modules()

    def modules(self) -> Iterator[nn.Module]:
        return self.unet.modules()

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.unet.parameters()


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
