"""LoRA's changes to a model's weights: W + strength · alpha / rank · up · down.

Layers are found by their names in ours and in the original layout; which files have them is `lora.py`'s question.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from fz.errors import FzError
from fz.weights.layouts import some, unet_table
from fz.weights.lora import ONLY, LoRA, shape


def merged(
    state: Mapping[str, Tensor], part: str, loras: Iterable[LoRA], layers: int | None = None
) -> dict[str, Tensor]:
    """The weights of a part, 'unet' or 'text', in our names, with all changes added in float32; others are shared.

    layers: of the text encoder; changes of layers beyond them are left out, as the layers are. Raises FzError for a
    change of a layer that the model has not, or has in another shape.
    """
    out, loras = dict(state), tuple(loras)
    places = places_of(state, part) if loras else {}
    for lora in loras:
        own = {name: layer for (of, name), layer in lora.layers.items() if of == part}
        skipped = [name for name in own if layers is not None and beyond(name, layers)]
        strange = [name for name in own if name not in places and name not in skipped]
        if strange:
            model = "UNet" if part == "unet" else "text encoder"
            raise FzError(
                f"lora: {lora.path} changes {len(strange)} layers that this {model} has not ({some(strange)}). {ONLY}; "
                "is it for another model?"
            )
        for name, layer in own.items():
            if name in skipped and name not in places:
                continue
            key = places[name]
            weight, delta = out[key], layer.delta()
            # a linear layer may be a convolution of 1x1
            if delta.flatten(1).shape != weight.flatten(1).shape or max(delta.ndim, weight.ndim) > 4:
                got = f"lora: {lora.path}: its change of {name} is {shape(delta)}, the layer {shape(weight)}"
                raise FzError(f"{got}. Expected the same; is it for another model?")
            out[key] = weight.float() + lora.strength * delta.reshape(weight.shape)
    return out


def places_of(state: Mapping[str, Tensor], part: str) -> dict[str, str]:
    """Names with '_' for '.' -> keys of the weights: ours, and the original layout's numbers of blocks."""
    keys = [key for key, t in state.items() if key.endswith(".weight") and t.ndim in (2, 4)]
    places = {key.removesuffix(".weight").replace(".", "_"): key for key in keys}
    if part == "unet":
        blocks = sorted({key.split(".")[1] for key in keys if key.startswith("up_blocks.")})
        attends = tuple(any(key.startswith(f"up_blocks.{i}.attentions.") for key in keys) for i in blocks)
        count = len({key.split(".")[3] for key in keys if key.startswith("down_blocks.0.resnets.")})
        for theirs, ours in unet_table(count, attends).items():
            for key in keys:
                if key.startswith(f"{ours}."):
                    name = f"{theirs}{key.removesuffix('.weight')[len(ours) :]}".replace(".", "_")
                    places.setdefault(name, key)
    return places


def beyond(name: str, layers: int) -> bool:
    found = re.match(r"encoder_layers_(\d+)_", name)
    return found is not None and int(found[1]) >= layers
