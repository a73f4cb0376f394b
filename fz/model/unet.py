"""The inflated UNet: Stable Diffusion v1's, run on all frames of a clip, its attention an argument (FateZero section
3.2).

Architecture from `config.json`, never assumed. A temporal part exists only when the checkpoint brings one: an untuned
model is Stable Diffusion, frame by frame when F = 1. This file knows no checkpoint files and no prompts.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz import kernels
from fz.model.deep import Deep
from fz.model.layers import (
    Alter,
    Attend,
    ClipGroupNorm,
    Conv3x3,
    Downsample,
    Operands,
    Ranks,
    ResnetBlock,
    Site,
    TextContext,
    TimeEmbedding,
    Transformer,
    Upsample,
    sinusoidal,
)
from fz.model.unet_config import Temporal, UNetConfig

__all__ = ["Encoder", "Temporal", "UNet", "UNetConfig", "own_frame", "sinusoidal"]


def own_frame(site: Site, x: Operands) -> Tensor:
    """Stable Diffusion's attention: every frame attends to itself and to the text."""
    if site.kind == "cross":
        return kernels.cross_attention(x.q(), x.k(), x.v())[0]
    frames = torch.arange(x.shape[1])[:, None]  # on the host, as every table of frames
    return kernels.self_attention(x.q(), x.k(), x.v(), frames)


class Block(nn.Module):
    """ResNets, each followed by a transformer where the level has attention, then a change of size where there is
    one.
    """

    def __init__(
        self,
        name: str,
        widths: list[tuple[int, int]],
        stride: int,
        attention: bool,
        heads: int,
        config: UNetConfig,
        ranks: Ranks,
    ):
        super().__init__()
        time_channels = 4 * config.block_out_channels[0]
        temporal = config.temporal is not None and config.temporal.attention
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in, c_out, time_channels, config.norm_num_groups, config.norm_eps, ranks)
            for c_in, c_out in widths
        )
        if attention:
            self.attentions = nn.ModuleList(
                Transformer(
                    f"{name}.attentions.{i}",
                    c,
                    heads,
                    stride,
                    config.cross_attention_dim,
                    config.norm_num_groups,
                    temporal,
                )
                for i, (_, c) in enumerate(widths)
            )
        self.has_attention = attention

    def layers(self) -> Iterator[tuple[ResnetBlock, Transformer | None]]:
        return zip(self.resnets, self.attentions if self.has_attention else [None] * len(self.resnets), strict=True)


class MiddleBlock(nn.Module):
    def __init__(self, name: str, channels: int, stride: int, heads: int, config: UNetConfig, ranks: Ranks):
        super().__init__()
        time_channels = 4 * config.block_out_channels[0]
        temporal = config.temporal is not None and config.temporal.attention
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, time_channels, config.norm_num_groups, config.norm_eps, ranks)
            for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            [
                Transformer(
                    f"{name}.attentions.0",
                    channels,
                    heads,
                    stride,
                    config.cross_attention_dim,
                    config.norm_num_groups,
                    temporal,
                )
            ]
        )


class Encoder(nn.Module):
    """The first half of the UNet and its middle, which a ControlNet has, too: features level by level.

    clip_norm: GroupNorm statistics run over all frames of a clip (the released code's way) rather than over each frame.
    name: what the names of its attention sites begin with.
    """

    def __init__(self, config: UNetConfig, clip_norm: bool = True, name: str = ""):
        super().__init__()
        self.config, self.clip_norm = config, clip_norm
        channels, heads, depth = config.block_out_channels, config.heads, len(config.block_out_channels)
        ranks: Ranks = config.temporal.rank_of if config.temporal else lambda _: None
        self.conv_in = Conv3x3(config.in_channels, channels[0], temporal=ranks(channels[0]))
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0])

        self.down_blocks = nn.ModuleList()
        self.widths = [channels[0]]  # of what the encoder leaves to the decoder, in its order
        for level, c in enumerate(channels):
            before = channels[max(level - 1, 0)]
            widths = [(before if i == 0 else c, c) for i in range(config.layers_per_block)]
            block = Block(
                f"{name}down_blocks.{level}",
                widths,
                2**level,
                config.down_attention[level],
                heads[level],
                config,
                ranks,
            )
            self.widths += [c] * config.layers_per_block
            if level < depth - 1:
                block.downsamplers = nn.ModuleList([Downsample(c, ranks)])
                self.widths.append(c)
            self.down_blocks.append(block)

        self.mid_block = MiddleBlock(f"{name}mid_block", channels[-1], 2 ** (depth - 1), heads[-1], config, ranks)

    def norm_frames(self, frames: int) -> int:
        """How many of a clip's frames GroupNorm takes together: all of them, or each alone."""
        return frames if self.clip_norm else 1

    def encode(
        self,
        x: Tensor,
        time: Tensor,
        frames: int,
        text: TextContext,
        attend: Attend,
        layers: int | None = None,
    ) -> list[Tensor]:
        """x: (B·F, C0, h, w), what conv_in made; time: (B·F, 4·C0). Returns x and the features of each of the encoder's
        layers, or of the first of them.
        """
        norm_frames, skips = self.norm_frames(frames), [x]
        for resnet, transformer, downsample in self.encoder()[:layers]:
            x = downsample(x, frames) if downsample else resnet(x, time, frames, norm_frames)
            x = transformer(x, frames, text, attend) if transformer else x
            skips.append(x)
        return skips

    def middle(self, x: Tensor, time: Tensor, frames: int, text: TextContext, attend: Attend) -> Tensor:
        """What follows the last of them."""
        norm_frames = self.norm_frames(frames)
        x = self.mid_block.resnets[0](x, time, frames, norm_frames)
        x = self.mid_block.attentions[0](x, frames, text, attend)
        return self.mid_block.resnets[1](x, time, frames, norm_frames)

    def encoder(self) -> list[tuple[ResnetBlock | None, Transformer | None, Downsample | None]]:
        """The encoder's layers, each of which leaves a skip: a ResNet and its transformer, or a change of size."""
        layers = []
        for block in self.down_blocks:
            layers += [(resnet, transformer, None) for resnet, transformer in block.layers()]
            layers += [(None, None, downsample) for downsample in getattr(block, "downsamplers", ())]
        return layers

    def time(self, t: int | Tensor, branches: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The activated time embedding of each branch, (B, 4·C0)."""
        # a number fills a tensor where that lies; copied there, it would make the host wait
        t = t.to(device).expand(branches) if isinstance(t, Tensor) else torch.full((branches,), t, device=device)
        config = self.config
        embedding = sinusoidal(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        return F.silu(self.time_embedding(embedding.to(dtype)))


class Added(Protocol):
    """What is added to the encoder's features before the decoder reads them (`fz.model.control.Control`)."""

    def __call__(
        self, x: Tensor, skips: list[Tensor], z: Tensor, t: int | Tensor, text: TextContext, attend: Attend
    ) -> tuple[Tensor, list[Tensor]]: ...


class UNet(Encoder):
    """eps = unet(z, t, text, attend): the noise in z at timestep t (0 … T_train - 1), given one prompt a branch."""

    def __init__(self, config: UNetConfig, clip_norm: bool = True):
        super().__init__(config, clip_norm)
        channels, heads, depth = config.block_out_channels, config.heads, len(config.block_out_channels)
        ranks: Ranks = config.temporal.rank_of if config.temporal else lambda _: None
        skips = list(self.widths)
        self.up_blocks = nn.ModuleList()
        before = channels[-1]
        for i, level in enumerate(reversed(range(depth))):
            c = channels[level]
            widths = [((before if j == 0 else c) + skips.pop(), c) for j in range(config.layers_per_block + 1)]
            block = Block(f"up_blocks.{i}", widths, 2**level, config.up_attention[i], heads[level], config, ranks)
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(c, ranks)])
            before = c
            self.up_blocks.append(block)

        self.conv_norm_out = ClipGroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = Conv3x3(channels[0], config.out_channels, temporal=ranks(config.out_channels))

    def sites(self) -> list[Site]:
        """Every attention site, in the order of the forward pass."""
        return [m.site for m in self._transformer_attentions()]

    def _transformer_attentions(self) -> Iterator[nn.Module]:
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for transformer in getattr(block, "attentions", ()):
                for layer in transformer.transformer_blocks:
                    yield from (layer.attn1, layer.attn2)

    def forward(
        self,
        z: Tensor,
        t: int | Tensor,
        text: TextContext,
        attend: Attend = own_frame,
        alter: Alter | None = None,
        deep: Deep | None = None,
        control: Added | None = None,
    ) -> Tensor:
        """z: (B, F, 4, h, w), h and w multiples of `config.stride`; t: one timestep, or (B,) of them; alter: of the
        decoder's ResNets; deep: takes what a shallow pass will need of this one, or has it for this shallow one;
        control: adds to what the decoder reads.

        Returns eps, shape and dtype of z; the layers compute in the weights' dtype.
        """
        branches, frames = z.shape[:2]
        norm_frames = self.norm_frames(frames)
        dtype = self.conv_norm_out.weight.dtype
        x = z.flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
        time = self.time(t, branches, z.device, dtype).repeat_interleave(frames, 0)  # (B·F, 4·C0)

        # every decoder layer takes one skip; the outermost ones are all that a shallow pass computes
        decoder = self.decoder()
        outer = len(decoder) if deep is None else deep.layers(self.config.layers_per_block)
        shallow = deep is not None and deep.shallow
        skips = self.encode(self.conv_in(x, frames), time, frames, text, attend, outer - 1 if shallow else None)
        x = deep.taken(len(x)) if shallow else self.middle(skips[-1], time, frames, text, attend)
        if control is not None:
            x, skips = control(x, skips, z, t, text, attend)

        for resnet, transformer, upsample in decoder[-outer:] if shallow else decoder:
            if deep is not None and len(skips) == outer:
                deep.features = x
            x = resnet(torch.cat([x, skips.pop()], dim=1), time, frames, norm_frames, alter)
            x = transformer(x, frames, text, attend) if transformer else x
            x = upsample(x, frames) if upsample else x

        eps = self.conv_out(self.conv_norm_out(x, norm_frames, silu=True), frames)
        return eps.unflatten(0, (branches, frames)).to(z.dtype)

    def decoder(self) -> list[tuple[ResnetBlock, Transformer | None, Upsample | None]]:
        """The decoder's layers, each of which takes a skip; the last of a level with its change of size."""
        layers = []
        for block in self.up_blocks:
            (*inner, (resnet, transformer)), (upsample,) = block.layers(), getattr(block, "upsamplers", (None,))
            layers += [(*layer, None) for layer in inner] + [(resnet, transformer, upsample)]
        return layers
