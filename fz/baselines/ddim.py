"""DDIM inversion, then plain sampling under the target: with a checkpoint tuned on the clip, the paper's 'Tune-A-Video
& DDIM'.

Nothing of the source is kept but the noise that it was inverted to.
"""

from collections.abc import Sequence

from torch import Tensor

from fz.ddim import Schedule
from fz.edit import Source, Watch, edit, ignore
from fz.frames import FrameIndex
from fz.model.unet import UNet


def ddim(
    unet: UNet,
    source: Source,
    target: Tensor,
    negative: Tensor,
    schedule: Schedule,
    guidance: float,
    frame_index: FrameIndex,
    done: Sequence[Tensor] = (),
    watch: Watch = ignore,
    guided: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """z_0 (F, 4, h, w) of the target prompt from the inverted noise; target, negative: (77, Cx)."""
    return edit(
        unet,
        source,
        target,
        negative,
        schedule,
        guidance,
        frame_index,
        fusion=None,
        done=done,
        watch=watch,
        guided=guided,
    )
