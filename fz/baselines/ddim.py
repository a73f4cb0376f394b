"""DDIM inversion, then plain sampling under the target: with a checkpoint tuned on the clip, the paper's 'Tune-A-Video
& DDIM'.

Nothing of the source is kept but the noise that it was inverted to.
"""

import dataclasses

from torch import Tensor

from fz.denoiser import Denoiser
from fz.edit import Callback, Edit, edit, ignore
from fz.guidance import Guidance
from fz.source import Source


def ddim(model: Denoiser, source: Source, task: Edit, guidance: Guidance, callback: Callback = ignore) -> Tensor:
    """z_0 (F, 4, h, w) of the target prompt from the inverted noise; of the task, its fusion does not count."""
    return edit(model, source, dataclasses.replace(task, fusion=None), guidance, callback)
