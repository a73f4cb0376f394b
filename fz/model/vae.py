"""The VAE: frames to latents and back, each frame on its own (Stable Diffusion v1's AutoencoderKL).

`encode` gives the posterior's mean, so that a run is deterministic. Parameter names are current diffusers'.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.18215  # latents that the UNet sees = SCALE · mean


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; each level after the first halves the picture's sides."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3

    @classmethod
    def from_json(cls, config: Mapping) -> "VAEConfig":
        """From a diffusers `vae/config.json`."""
        return cls(
            block_out_channels=tuple(config["block_out_channels"]),
            layers_per_block=config.get("layers_per_block", 1),
            latent_channels=config.get("latent_channels", 4),
            norm_num_groups=config.get("norm_num_groups", 32),
            in_channels=config.get("in_channels", 3),
            out_channels=config.get("out_channels", 3),
        )

    @property
    def stride(self) -> int:
        """By how much a latent is smaller than its picture."""
        return 2 ** (len(self.block_out_channels) - 1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm in two passes: PyTorch's channels_last kernel takes E[x²] - E[x]², which on flat pictures loses two
    digits.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            # training does not need those digits, and PyTorch's own backward pass is five times as fast
            return super().forward(x)
        h, w = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2).float()  # (F, N, C)
        mean = self._over_group(tokens.mean(1))  # (F, C), each channel its group's
        variance = self._over_group((tokens - mean[:, None]).square_().mean(1))
        scale = (variance + self.eps).rsqrt() * self.weight
        tokens = torch.addcmul((self.bias - mean * scale)[:, None], tokens, scale[:, None])
        return tokens.to(x.dtype).unflatten(1, (h, w)).permute(0, 3, 1, 2)

    def _over_group(self, x: Tensor) -> Tensor:
        return (
            x.unflatten(-1, (self.num_groups, -1)).mean(-1).repeat_interleave(self.num_channels // self.num_groups, -1)
        )


def silu(x: Tensor) -> Tensor:
    """SiLU of a norm's result, in its place unless gradients are wanted."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Resnet(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class MiddleAttention(nn.Module):
    """One head over all pixels of a frame."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)[:, None]  # (F, 1, N, C)
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](out)[:, 0].unflatten(1, (h, w)).permute(0, 3, 1, 2)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([MiddleAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resample(nn.Module):
    """The convolution of a change of size; padded on the right and below when going down, as latent diffusion does."""

    def __init__(self, channels: int, down: bool):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Some ResNets, then a change of size unless it is the last level. Attribute names are the checkpoint's."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, resample: str | None):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(c_in if i == 0 else c_out, c_out, groups) for i in range(layers))
        self.resample = resample
        if resample:
            setattr(self, resample, nn.ModuleList([Resample(c_out, down=resample == "downsamplers")]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return getattr(self, self.resample)[0](x) if self.resample else x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                channels[max(i - 1, 0)],
                c,
                config.layers_per_block,
                groups,
                "downsamplers" if i < len(channels) - 1 else None,
            )
            for i, c in enumerate(channels)
        )
        self.mid_block = Middle(channels[-1], groups)
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = Middle(channels[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(
                channels[max(i - 1, 0)],
                c,
                config.layers_per_block + 1,
                groups,
                "upsamplers" if i < len(channels) - 1 else None,
            )
            for i, c in enumerate(channels)
        )
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """encode: frames (F, 3, H, W) in [-1, 1] -> the posterior's mean (F, 4, H/8, W/8), unscaled; decode: its
    inverse.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, frames: Tensor) -> Tensor:
        return self.moments(frames)[0]

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, each (F, 4, h, w)."""
        return self.quant_conv(self.encoder(frames)).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


def encode_clip(vae: VAE, frames: Tensor, at_once: int = 1) -> Tensor:
    """frames (F, 3, H, W) in [-1, 1] -> z0 (F, 4, h, w) float32 scaled by 0.18215; so many frames at a time, to bound
    memory.
    """
    weight = vae.quant_conv.weight
    means = [vae.encode(some.to(weight.device, weight.dtype)).float() for some in frames.split(at_once)]
    return SCALE * torch.cat(means)


def decode_clip(vae: VAE, z: Tensor, at_once: int = 1) -> Tensor:
    """z (F, 4, h, w) scaled by 0.18215 -> frames (F, 3, H, W), float32 on the CPU, about [-1, 1]; so many frames at a
    time.
    """
    weight = vae.quant_conv.weight
    return torch.cat(
        [vae.decode(some.to(weight.device, weight.dtype) / SCALE).float().cpu() for some in z.split(at_once)]
    )
