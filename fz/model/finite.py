"""When the predicted noise is not finite: at which timestep, and in which layer of the UNet."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fz.errors import FzError


class NotFinite(FzError):
    """Latents or frames hold NaN or infinity."""


def check_finite(eps: Tensor, models: Mapping[str, nn.Module], t: int, again: Callable[[], Tensor]) -> None:
    """Raise NotFinite, naming the timestep and, when a second forward pass finds it, the layer, if eps holds NaN or
    infinity.

    models: what predicted it, by what their layers' names are to begin with; again: the very forward pass that gave
    eps, with the same attention.
    """
    if torch.isfinite(eps).all():
        return
    layer = first_bad_layer(models, again)
    found = f", first in layer {layer}" if layer else ""
    # eps is float32 whatever the UNet computes in
    dtypes = {eps.dtype, *(p.dtype for model in models.values() for p in model.parameters())}
    hint = " Is the checkpoint damaged?"
    if torch.float16 in dtypes:
        hint = " float16 ends at 65504: try --dtype bfloat16, or float32."
    elif torch.bfloat16 in dtypes:
        hint = " Try --dtype float32."
    raise NotFinite(f"timestep {t}: the predicted noise holds NaN or infinity{found}; expected finite values.{hint}")


def first_bad_layer(models: Mapping[str, nn.Module], forward: Callable[[], Tensor]) -> str | None:
    """The name of the first leaf module whose output is not finite in one call of forward, or None."""
    bad: list[str] = []
    hooks = []
    named = ((first + name, module) for first, model in models.items() for name, module in model.named_modules())
    for name, module in named:
        if not any(module.children()):

            def look(_module, _inputs, output, name=name):
                if not bad and isinstance(output, Tensor) and not torch.isfinite(output).all():
                    bad.append(name)

            hooks.append(module.register_forward_hook(look))
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else None
