"""What the paper compares with, and FateZero beside it: the table of methods that `--method` names.

Each baseline is a function of its own in a file of its own, and takes the few values that it needs. What differs in a
run around them (is the clip inverted, are words aligned, …) is in the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fz.baselines.ddim import ddim
from fz.baselines.null_p2p import null_p2p, optimise_frames
from fz.baselines.pnp import pnp
from fz.baselines.sdedit import sdedit
from fz.ddim import CLEAN, Schedule
from fz.edit import Source, Watch, edit
from fz.frames import FrameIndex
from fz.fusion import Fusion
from fz.model.unet import UNet


@dataclass(frozen=True)
class Task:
    """One edit, for any method. source: the inverted clip, or its z_0 alone for methods that invert nothing; prepared:
    by `prepare`.
    """

    unet: UNet
    source: Source
    target: Tensor
    negative: Tensor
    schedule: Schedule
    guidance: float
    frame_index: FrameIndex
    fusion: Fusion | None
    strength: float
    seed: int
    prepared: Any
    done: Sequence[Tensor]
    watch: Watch
    watch_masks: Callable[[int, Mapping[tuple[int, int], Tensor]], None]
    guided: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Method:
    """A method and what a run does for it.

    edit: the task -> z_0 (F, 4, h, w). inverts: it starts from the clip's inversion. fuses: words are aligned and
    planned. keeps: it reads the source's queries and keys, or a reconstruction's. resumes: it goes on from the steps in
    `done`. prepare: (unet, z_0, source, negative, schedule, guidance, watch) -> Task.prepared, once for all edits, F ·
    T steps. note: for the user.
    """

    edit: Callable[[Task], Tensor]
    inverts: bool = True
    fuses: bool = False
    keeps: bool = False
    resumes: bool = False
    prepare: Callable[[UNet, Tensor, Tensor, Tensor, Schedule, float, Watch], Any] | None = None
    note: str = ""


METHODS: Mapping[str, Method] = {
    "fatezero": Method(
        lambda task: edit(
            task.unet,
            task.source,
            task.target,
            task.negative,
            task.schedule,
            task.guidance,
            task.frame_index,
            task.fusion,
            task.done,
            task.watch,
            task.watch_masks,
            task.guided,
        ),
        fuses=True,
        keeps=True,
        resumes=True,
    ),
    "ddim": Method(
        lambda task: ddim(
            task.unet,
            task.source,
            task.target,
            task.negative,
            task.schedule,
            task.guidance,
            task.frame_index,
            task.done,
            task.watch,
            task.guided,
        ),
        resumes=True,
        note="DDIM inversion, then plain sampling; fusion flags do not count",
    ),
    "sdedit": Method(
        lambda task: sdedit(
            task.unet,
            task.source.latents[CLEAN],
            task.target,
            task.negative,
            task.schedule,
            task.guidance,
            task.strength,
            task.seed,
            task.watch,
        ),
        inverts=False,
        note="frame by frame, from noise of --strength and --seed; fusion flags do not count",
    ),
    "null-p2p": Method(
        lambda task: null_p2p(
            task.unet, task.prepared, task.target, task.schedule, task.guidance, task.fusion, task.watch
        ),
        inverts=False,
        fuses=True,
        prepare=optimise_frames,
        note="frame by frame, null-text optimisation and prompt-to-prompt; masks and latent blending do not count",
    ),
    "pnp": Method(
        lambda task: pnp(
            task.unet,
            task.source,
            task.target,
            task.negative,
            task.schedule,
            task.guidance,
            task.frame_index,
            watch=task.watch,
        ),
        note="plug-and-play features; fusion flags do not count",
    ),
}
