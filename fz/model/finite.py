"""When the predicted noise is not finite: at which timestep, and in which layer of the UNet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fz.errors import FzError


class NotFinite(FzError):
    """Latents or frames hold NaN or infinity."""


@dataclass
class Watch:
    """Asks whether predicted noise is finite, and has the answer when a step is over, so that the host does not wait
    for a GPU within it. On a CPU the answer comes at once.
    """

    answer: Callable[[], None] | None = None

    def look(self, eps: Tensor, models: Mapping[str, nn.Module], t: int, again: Callable[[], Tensor]) -> None:
        """The arguments of `refuse`. Settles what was asked before."""
        self.settle()
        finite = on_host(torch.isfinite(eps).all())
        self.answer = lambda: finite() or refuse(eps, models, t, again)
        if eps.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Raise NotFinite if the noise that was looked at last was not finite."""
        answer, self.answer = self.answer, None
        if answer:
            answer()


def on_host(flag: Tensor) -> Callable[[], bool]:
    """The value of a flag, to be asked for later: who asks waits until it was computed, not for what came after."""
    if not flag.is_cuda:
        return lambda: bool(flag)
    host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
    event = torch.cuda.current_stream(flag.device).record_event()
    return lambda: event.synchronize() or bool(host)


def refuse(eps: Tensor, models: Mapping[str, nn.Module], t: int, again: Callable[[], Tensor]) -> None:
    """Raise NotFinite, naming the timestep and, when a second forward pass finds it, the layer.

    models: what predicted it, by what their layers' names are to begin with; again: the very forward pass that gave
    eps, with the same attention.
    """
    layer = first_bad_layer(models, again)
    found = f", first in layer {layer}" if layer else ""
    # eps is float32 whatever the UNet computes in
    modules = [module for model in models.values() for module in model.modules()]
    dtypes = {eps.dtype, *(p.dtype for module in modules for p in module.parameters(recurse=False))}
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
