"""What the paper compares with, and FateZero beside it: the table of methods that `--method` names.

Each is a function `(model, source, edit, guidance, callback) -> z_0` in a file of its own. What differs in a run around
them (is the clip inverted, are words aligned, …) is in the table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fz.baselines.ddim import ddim
from fz.baselines.null_p2p import NullTextP2P, frames_together
from fz.baselines.pnp import PnP
from fz.baselines.sdedit import SDEdit
from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, edit
from fz.guidance import Guidance
from fz.model.unet import UNet
from fz.settings.config import Settings
from fz.source import Source

# (model, the inverted source or its z_0 alone, edit, guidance, callback) -> z_0 (F, 4, h, w)
EditFunction = Callable[[Denoiser, Source, Edit, Guidance, Callback], Tensor]


@dataclass(frozen=True)
class Method:
    """A method and what a run does for it.

    edit: the editing function, or None where `prepare` makes it. inverts: it starts from the clip's inversion. fuses:
    words are aligned and planned. keeps: it reads the source's queries and keys, or a reconstruction's. resumes: it
    goes on from the steps in `Edit.done`. prepare: (model, source, guidance, callback) -> the editing function, once
    for all edits, F · T steps. note: for the user.

    What it takes of memory: beside, branches beside those of the edit; together, how many frames go through the UNet at
    a time, of so many pixels of latents, None for all; differentiates: passes over them are differentiated.
    """

    edit: EditFunction | None = None
    inverts: bool = True
    fuses: bool = False
    keeps: bool = False
    resumes: bool = False
    prepare: Callable[[Denoiser, Source, Guidance, Callback], EditFunction] | None = None
    note: str = ""
    beside: int = 0
    together: Callable[[UNet, int], int] | None = None
    differentiates: bool = False


METHODS: Mapping[str, Method] = {
    "fatezero": Method(edit, fuses=True, keeps=True, resumes=True),
    "ddim": Method(ddim, resumes=True, note="DDIM inversion, then plain sampling; fusion flags do not count"),
    "sdedit": Method(
        SDEdit(),
        inverts=False,
        note="frame by frame, from noise of --strength and --seed; fusion flags do not count",
    ),
    "null-p2p": Method(
        prepare=NullTextP2P.of,
        inverts=False,
        fuses=True,
        together=frames_together,
        differentiates=True,
        note="frame by frame, null-text optimisation and prompt-to-prompt; masks and latent blending do not count",
    ),
    "pnp": Method(PnP(), beside=1, note="plug-and-play features; fusion flags do not count"),
}


def editor_of(name: str, strength: float, seed: int) -> EditFunction:
    """The editing function of a method that prepares nothing; strength and seed are SDEdit's."""
    return SDEdit(strength, seed) if name == "sdedit" else METHODS[name].edit


def reconstructs(settings: Settings) -> bool:
    """Is attention of a reconstruction fused, in place of inversion's?"""
    return settings.attention == "reconstruction" and METHODS[settings.method].keeps
