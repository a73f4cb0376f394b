"""The attention sites of Stable Diffusion v1.4 for a clip of a given size: tokens, width, layers of each.

Read from the model itself (on the meta device, no weights): this file knows no table that could disagree with it.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from fz.attention import FUSED_FROM_STRIDE
from fz.errors import FzError
from fz.model.unet import UNet, UNetConfig

TEXT_TOKENS = 77
LATENT_STRIDE = 8  # pixels of an image that one latent pixel stands for


@dataclass(frozen=True)
class BenchSite:
    """One kind of attention layer. layers: how many the model has; fused: whether the editor fuses there.

    kind: 'self' or 'cross'; side: h = w of the feature map; anchors: frames whose keys a frame reads (cross: 1).
    """

    kind: str
    side: int
    stride: int
    heads: int
    d: int
    frames: int
    anchors: int
    layers: int

    @property
    def tokens(self) -> int:
        """N, queries of a frame."""
        return self.side**2

    @property
    def keys(self) -> int:
        """Keys that each query meets."""
        return self.anchors * self.tokens if self.kind == "self" else TEXT_TOKENS

    @property
    def channels(self) -> int:
        return self.heads * self.d

    @property
    def fused(self) -> bool:
        return self.stride >= FUSED_FROM_STRIDE

    @property
    def name(self) -> str:
        return f"{self.kind} {self.side}x{self.side} D{self.d}"

    @property
    def operand(self) -> int:
        """Elements of q, k, v or the result of one branch, (F, N, Nh, D)."""
        return self.frames * self.tokens * self.channels

    @property
    def map(self) -> int:
        """Elements of one branch's attention map, (F, Nh, N, keys)."""
        return self.frames * self.heads * self.tokens * self.keys

    @property
    def operations(self) -> int:
        """Operations of the two products of an attention of a branch: what the result needs, however it is reached."""
        return 4 * self.map * self.d


def sites(size: int, frames: int, anchors: int = 2, config: UNetConfig | None = None) -> list[BenchSite]:
    """Sites of a clip of size x size pixels, widest maps first, self before cross. FzError: a size no model takes."""
    config = config or UNetConfig()
    deepest = LATENT_STRIDE << (len(config.block_out_channels) - 1)
    if size < deepest or size % deepest:
        raise FzError(f"size: got {size}, expected a multiple of {deepest}, as 256.")
    if frames < 1 or not 1 <= anchors <= frames:
        raise FzError(f"anchors: got {anchors} for {frames} frames, expected from 1 to as many as there are frames.")
    with torch.device("meta"):
        unet = UNet(config)
    heads = dict(zip(config.block_out_channels, config.heads, strict=True))
    layers = Counter((site.kind, site.stride, site.channels) for site in unet.sites())
    found = []
    for (kind, stride, channels), count in layers.items():
        shape = (size // LATENT_STRIDE // stride, stride, heads[channels], channels // heads[channels])
        found.append(BenchSite(kind, *shape, frames, anchors if kind == "self" else 1, count))
    return sorted(found, key=lambda site: (site.kind != "self", -site.side))
