"""The inflated UNet: Stable Diffusion v1's, run on all frames of a clip, its attention an argument (FateZero section
3.2).

Architecture from `config.json`, never assumed. A temporal part exists only when the checkpoint brings one: an untuned
model is Stable Diffusion, frame by frame when F = 1. This file knows no checkpoint files and no prompts.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz import kernels
from fz.errors import FzError
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
    Transformer,
    Upsample,
)


@dataclass(frozen=True)
class Temporal:
    """What a tuned checkpoint adds: temporal attention, and convolutions over time that are 'full', 'low_rank' or None.

    ranks: (channels, rank) of each width that has a low-rank convolution, as the weights say.
    """

    attention: bool = True
    conv: str | None = None
    ranks: tuple[tuple[int, int], ...] = ()

    def rank_of(self, channels: int) -> int | None:
        """The rank of the temporal convolution of a layer of this width: None for no such layer, 0 for full rank."""
        return {None: None, "full": 0}[self.conv] if self.conv != "low_rank" else dict(self.ranks)[channels]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of an SD-v1-like UNet. heads: attention heads, at every level or one number a level."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    in_channels: int = 4
    out_channels: int = 4
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    temporal: Temporal | None = None

    @classmethod
    def from_json(cls, config: Mapping, temporal: Temporal | None = None) -> "UNetConfig":
        """From a diffusers `unet/config.json`, of UNet2DConditionModel or of its inflated kin. Raises FzError for what
        is not SD v1.
        """
        refuse_unsupported(config)
        channels = tuple(config["block_out_channels"])
        # SD v1's config calls the number of heads `attention_head_dim`
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        return cls(
            block_out_channels=channels,
            layers_per_block=config.get("layers_per_block", 2),
            heads=tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(channels),
            cross_attention_dim=config.get("cross_attention_dim", 768),
            norm_num_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            down_attention=tuple("CrossAttn" in kind for kind in config["down_block_types"]),
            up_attention=tuple("CrossAttn" in kind for kind in config["up_block_types"]),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            temporal=temporal,
        )

    @property
    def stride(self) -> int:
        """By how much the deepest level is smaller than the latent; its sides must be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)


# what other models' configs set and SD v1's does not: value that means 'as SD v1'
SD1_ONLY = {
    "use_linear_projection": (False, "SD 2's linear projections"),
    "class_embed_type": (None, "class embeddings"),
    "num_class_embeds": (None, "class embeddings"),
    "only_cross_attention": (False, "cross-attention without self-attention"),
    "dual_cross_attention": (False, "dual cross-attention"),
    "resnet_time_scale_shift": ("default", "scale-shift time conditioning"),
    "act_fn": ("silu", "another activation"),
    "addition_embed_type": (None, "SDXL's added conditioning"),
    "transformer_layers_per_block": (1, "several transformer layers a block"),
    "center_input_sample": (False, "a centred input"),
    "time_cond_proj_dim": (None, "guidance-distilled conditioning"),
    "encoder_hid_dim": (None, "a projected text encoder"),
    "downsample_padding": (1, "another padding"),
    "mid_block_scale_factor": (1, "a scaled middle block"),
    "upcast_attention": (False, "SD 2.1's upcast attention"),
}


def refuse_unsupported(config: Mapping) -> None:
    """Raise FzError if a UNet's config asks for what Stable Diffusion v1 does not have."""
    for key, (expected, what) in SD1_ONLY.items():
        if config.get(key, expected) not in (expected, [expected] * len(config.get("block_out_channels", ()))):
            got = f"unet/config.json: {key} is {config[key]!r} ({what})"
            raise FzError(f"{got}; expected {expected!r}. Use a Stable Diffusion v1.x checkpoint.")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        if key not in config:
            raise FzError(f"unet/config.json: {key} is missing. Is this a diffusers UNet config?")


def own_frame(site: Site, x: Operands) -> Tensor:
    """Stable Diffusion's attention: every frame attends to itself and to the text."""
    if site.kind == "cross":
        return kernels.cross_attention(x.q(), x.k(), x.v())[0]
    frames = torch.arange(x.shape[1], device=x.tokens.device)[:, None]
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
    def __init__(self, channels: int, stride: int, heads: int, config: UNetConfig, ranks: Ranks):
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
                    "mid_block.attentions.0",
                    channels,
                    heads,
                    stride,
                    config.cross_attention_dim,
                    config.norm_num_groups,
                    temporal,
                )
            ]
        )


class TimeEmbedding(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(nn.Module):
    """eps = unet(z, t, text, attend): the noise in z at timestep t (0 … T_train - 1), given one prompt a branch.

    clip_norm: GroupNorm statistics run over all frames of a clip (the released code's way) rather than over each frame.
    """

    def __init__(self, config: UNetConfig, clip_norm: bool = True):
        super().__init__()
        self.config, self.clip_norm = config, clip_norm
        channels, heads, depth = config.block_out_channels, config.heads, len(config.block_out_channels)
        ranks: Ranks = config.temporal.rank_of if config.temporal else lambda _: None
        self.conv_in = Conv3x3(config.in_channels, channels[0], temporal=ranks(channels[0]))
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0])

        self.down_blocks = nn.ModuleList()
        skips = [channels[0]]
        for level, c in enumerate(channels):
            before = channels[max(level - 1, 0)]
            widths = [(before if i == 0 else c, c) for i in range(config.layers_per_block)]
            block = Block(
                f"down_blocks.{level}", widths, 2**level, config.down_attention[level], heads[level], config, ranks
            )
            skips += [c] * config.layers_per_block
            if level < depth - 1:
                block.downsamplers = nn.ModuleList([Downsample(c, ranks)])
                skips.append(c)
            self.down_blocks.append(block)

        self.mid_block = MiddleBlock(channels[-1], 2 ** (depth - 1), heads[-1], config, ranks)

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
    ) -> Tensor:
        """z: (B, F, 4, h, w), h and w multiples of `config.stride`; t: one timestep, or (B,) of them; alter: of the
        decoder's ResNets; deep: takes what a shallow pass will need of this one, or has it for this shallow one.

        Returns eps, shape and dtype of z; the layers compute in the weights' dtype.
        """
        branches, frames = z.shape[:2]
        norm_frames = frames if self.clip_norm else 1
        dtype = self.conv_norm_out.weight.dtype
        x = z.flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
        time = self.time(t, branches, z.device, dtype).repeat_interleave(frames, 0)  # (B·F, 4·C0)

        # every decoder layer takes one skip; the outermost ones are all that a shallow pass computes
        encoder, decoder = self.encoder(), self.decoder()
        outer = len(decoder) if deep is None else deep.layers(self.config.layers_per_block)
        shallow = deep is not None and deep.shallow
        x = self.conv_in(x, frames)
        skips = [x]
        for resnet, transformer, downsample in encoder[: outer - 1] if shallow else encoder:
            x = downsample(x, frames) if downsample else resnet(x, time, frames, norm_frames)
            x = transformer(x, frames, text, attend) if transformer else x
            skips.append(x)

        if shallow:
            x = deep.taken(len(x))
        else:
            x = self.mid_block.resnets[0](x, time, frames, norm_frames)
            x = self.mid_block.attentions[0](x, frames, text, attend)
            x = self.mid_block.resnets[1](x, time, frames, norm_frames)

        for resnet, transformer, upsample in decoder[-outer:] if shallow else decoder:
            if deep is not None and len(skips) == outer:
                deep.features = x
            x = resnet(torch.cat([x, skips.pop()], dim=1), time, frames, norm_frames, alter)
            x = transformer(x, frames, text, attend) if transformer else x
            x = upsample(x, frames) if upsample else x

        eps = self.conv_out(self.conv_norm_out(x, norm_frames, silu=True), frames)
        return eps.unflatten(0, (branches, frames)).to(z.dtype)

    def encoder(self) -> list[tuple[ResnetBlock | None, Transformer | None, Downsample | None]]:
        """The encoder's layers, each of which leaves a skip: a ResNet and its transformer, or a change of size."""
        layers = []
        for block in self.down_blocks:
            layers += [(resnet, transformer, None) for resnet, transformer in block.layers()]
            layers += [(None, None, downsample) for downsample in getattr(block, "downsamplers", ())]
        return layers

    def decoder(self) -> list[tuple[ResnetBlock, Transformer | None, Upsample | None]]:
        """The decoder's layers, each of which takes a skip; the last of a level with its change of size."""
        layers = []
        for block in self.up_blocks:
            (*inner, (resnet, transformer)), (upsample,) = block.layers(), getattr(block, "upsamplers", (None,))
            layers += [(*layer, None) for layer in inner] + [(resnet, transformer, upsample)]
        return layers

    def time(self, t: int | Tensor, branches: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The activated time embedding of each branch, (B, 4·C0)."""
        # a number fills a tensor where that lies; copied there, it would make the host wait
        t = t.to(device).expand(branches) if isinstance(t, Tensor) else torch.full((branches,), t, device=device)
        config = self.config
        embedding = sinusoidal(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        return F.silu(self.time_embedding(embedding.to(dtype)))


def sinusoidal(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Timesteps (B,) as sines and cosines of geometric frequencies, (B, channels), float32 (Vaswani et al. 2017,
    3.5).
    """
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * exponent.exp()
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=-1)
