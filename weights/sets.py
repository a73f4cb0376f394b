"""Which of two sets of UNet weights is taken, those of the last step or their averages over training (EMA)?

Single files have averages under `model_ema.`, folders of diffusers' plain weights in `non_ema` files.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fz.errors import FzError
from fz.weights import layouts
from fz.weights.layouts import some, under
from fz.weights.names import listed


def set_of(path: Path, ema: str) -> str | None:
    """Which of two sets of UNet weights a folder gives, 'EMA' or 'plain': where plain ones (non_ema) lie beside others,
    these are averages. None for one set, of which nothing says what it is.

    Raises FzError for a set that was asked for and is not known to be there.
    """
    # the Hub's cache has not all that the Hub has
    there = {f"unet/{p.name}" for p in (path / "unet").glob("*")} | listed(path)
    has = {v: any(f"unet/{name}" in there for name in layouts.weight_files("unet", v)) for v in (None, "non_ema")}
    if has["non_ema"]:
        if ema == "ema" and not has[None]:
            raise FzError(f"ema: got 'ema', but {path / 'unet'} has plain weights alone. Choose 'plain' or 'auto'.")
        return "EMA" if has[None] and ema != "plain" else "plain"
    if ema != "auto" and has[None]:
        raise FzError(
            f"ema: got {ema!r}, but {path / 'unet'} has one set of weights, and nothing says whether they are averages "
            "(EMA). Expected diffusion_pytorch_model.non_ema.safetensors beside them; choose 'auto', which takes them."
        )
    return None


def choose_ema(
    state: Mapping[str, Tensor], prefix: str, inner: str, ema: str, path: Path
) -> tuple[dict[str, Tensor], str | None]:
    """The entries under prefix, without it: as they are ('plain'), or averaged over training ('ema'; 'auto' where they
    are there).

    The averages lie under `model_ema.`, their keys being inner + the plain key, with the dots removed.
    Returns the set, and which was used: 'EMA' or 'plain' where there was a choice, else None.
    """
    plain, averaged = under(state, prefix), under(state, "model_ema.")
    if inner == "":  # a file of its own: all that is no average and no left-over
        plain = {key: t for key, t in plain.items() if not key.startswith(layouts.LEFT_OUT)}
    averaged = {key: t for key, t in averaged.items() if key not in ("decay", "num_updates")}
    if not averaged:
        if ema == "ema":
            raise FzError(f"{path}: has no EMA weights (no model_ema. keys). Choose 'plain' or 'auto'.")
        return plain, None
    if ema == "plain":
        return plain, "plain"
    dotless = {(inner + key).replace(".", ""): key for key in plain}
    if len(dotless) != len(plain) or dotless.keys() != averaged.keys():
        odd = sorted(dotless.keys() ^ averaged.keys())
        raise FzError(
            f"{path}: its EMA weights do not match its plain ones ({len(odd)} keys: {some(odd)}). Choose 'plain'."
        )
    return {dotless[key]: t for key, t in averaged.items()}, "EMA"


def of_set(used: str | None) -> str:
    """For the report."""
    return f", {used} weights" if used else ""
