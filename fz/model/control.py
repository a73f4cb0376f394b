"""A ControlNet beside the UNet (Zhang et al. 2023, arXiv 2302.05543): outlines, depth or poses of each frame hold the
structure.

It is a copy of the UNet's encoder and middle that also sees a picture of control, and adds what it finds, through 1x1
convolutions that began at zero, to what the decoder reads. Its own attention takes part in no fusion: every frame reads
the frames of the editor's index, as in the UNet. This file knows no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz.model.layers import CONTROL, Attend, TextContext
from fz.model.unet import Encoder, UNetConfig, own_frame


@dataclass(frozen=True)
class ControlConfig:
    """unet: of the UNet that it stands beside, without temporal layers. hint_channels: of the layers that bring a
    picture to the latent's size, each but the first halving its sides.
    """

    unet: UNetConfig
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)

    @property
    def stride(self) -> int:
        """By how much the latent is smaller than the picture."""
        return 2 ** (len(self.hint_channels) - 1)


class HintEmbedding(nn.Module):
    """Pictures (F, 3, H, W) in [0, 1] to features (F, C0, h, w)."""

    def __init__(self, channels: tuple[int, ...], c_out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in zip(channels, channels[1:], strict=False):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        self.conv_out = nn.Conv2d(channels[-1], c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv_in, *self.blocks):
            x = F.silu(layer(x))
        return self.conv_out(x)


class ControlNet(Encoder):
    """What is to be added to the middle's features and to each of the encoder's. Names are diffusers'.

    clip_norm: as the UNet's.
    """

    def __init__(self, config: ControlConfig, clip_norm: bool = True):
        super().__init__(config.unet, clip_norm, CONTROL)
        self.hint_stride, middle = config.stride, config.unet.block_out_channels[-1]
        self.controlnet_cond_embedding = HintEmbedding(config.hint_channels, config.unet.block_out_channels[0])
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, 1) for c in self.widths)
        self.controlnet_mid_block = nn.Conv2d(middle, middle, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.controlnet_mid_block.weight.dtype

    @torch.no_grad()
    def hint(self, pictures: Tensor) -> Tensor:
        """(F, 3, H, W) in [0, 1] to (F, C0, h, w): the same at every timestep. A frame at a time."""
        device = self.controlnet_mid_block.weight.device
        return torch.cat([self.controlnet_cond_embedding(x.to(device, self.dtype)) for x in pictures.split(1)])

    def forward(
        self, z: Tensor, t: int | Tensor, text: TextContext, hint: Tensor, attend: Attend = own_frame
    ) -> tuple[Tensor, list[Tensor]]:
        """z: (B, F, 4, h, w); t: one timestep, or (B,); hint: (n, C0, h, w), B·F being a multiple of n.

        Returns what is to be added to the middle's features, and to the encoder's in their order.
        """
        branches, frames = z.shape[:2]
        x = z.flatten(0, 1).to(self.dtype).contiguous(memory_format=torch.channels_last)
        time = self.time(t, branches, z.device, self.dtype).repeat_interleave(frames, 0)
        x = self.conv_in(x, frames) + hint.repeat(len(x) // len(hint), 1, 1, 1)
        skips = self.encode(x, time, frames, text, attend)
        middle = self.controlnet_mid_block(self.middle(skips[-1], time, frames, text, attend))
        return middle, [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)]


@dataclass(frozen=True)
class Control:
    """A ControlNet and the clip's pictures of control, as a UNet's forward pass calls them (`fz.model.unet.Added`).

    hint: (F, C0, h, w), of `ControlNet.hint`. scale: what its output is multiplied by. timesteps: those at which it
    acts.
    """

    net: ControlNet
    hint: Tensor
    scale: float
    timesteps: frozenset[int]

    def at(self, t: int) -> "Control | None":
        """Itself at the timesteps at which it acts."""
        return self if t in self.timesteps else None

    def part(self, frames: Sequence[int]) -> "Control":
        """The same of some frames of the clip."""
        return replace(self, hint=self.hint[list(frames)])

    def __call__(
        self, x: Tensor, skips: list[Tensor], z: Tensor, t: int | Tensor, text: TextContext, attend: Attend
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's features x and the encoder's, with what the ControlNet adds to each."""
        middle, added = self.net(z, t, text, self.hint, attend)
        return x + self.scale * middle, [skip + self.scale * a for skip, a in zip(skips, added, strict=True)]
