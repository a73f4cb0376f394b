"""What are the miniature trained and measured on, unless told otherwise? Without torch: flags have it as defaults."""

from dataclasses import dataclass

from fz import mini

STORIES = 12_000  # whose pictures the VAE and the CLIP are trained on


@dataclass(frozen=True)
class Setup:
    """What figures depend on beside the checkpoint. steps: of clips; picture_steps: of pictures from captions."""

    frames: int = 8
    size: int = mini.SIZE
    steps: int = mini.DEFAULTS["steps"]
    picture_steps: int = mini.DEFAULTS["steps"]
    guidance: float = mini.DEFAULTS["guidance"]
    fuse: str = "auto"  # the largest feature maps that are fused: auto, half or full, as in a run of the miniature
