"""The layers of the inflated UNet: what happens to one feature map.

A clip is (B·F, C, H, W), frames of a branch in a row, kept channels_last so that tokens (B, F, N, C) are a free view of
it. Only three things cross frames, each one function here: the attention that the caller passes in, GroupNorm over a
clip's frames, and the temporal layers of a tuned model. Names follow Stable Diffusion v1's checkpoints; where attention
comes from is `fusion.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz import kernels

CONTROL = "control."  # how the names of a ControlNet's sites begin


@dataclass(frozen=True)
class Site:
    """One attention layer: its checkpoint name, 'self' or 'cross', the stride of its feature map from the latent, its
    width.
    """

    name: str
    kind: str
    stride: int
    channels: int

    @property
    def fusible(self) -> bool:
        """Does it take part in what is recorded and fused? A ControlNet's attention does not."""
        return not self.name.startswith(CONTROL)


@dataclass
class TextContext:
    """The prompts of a forward pass, one a branch, and each cross-attention layer's keys and values of them (made
    once).

    embedding: (B, L, Cx), L = 77 CLIP tokens.
    """

    embedding: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def project(self, name: str, linear: nn.Linear) -> Tensor:
        """linear(embedding), (B, L, C); kept under name unless gradients are wanted."""
        if torch.is_grad_enabled() and (linear.weight.requires_grad or self.embedding.requires_grad):
            return linear(self.embedding.to(linear.weight.dtype))
        if name not in self.cache:
            self.cache[name] = linear(self.embedding.to(linear.weight.dtype))
        return self.cache[name]


class Operands:
    """What an attention layer offers to the attention function at its site: queries, keys and values, made only when
    asked for.

    Self-attention: q, k, v are (B, F, N, Nh, D). Cross-attention: q is that, k and v are (B, L, Nh, D). `branches`
    picks branches of the batch, so that what fusion does not need is not computed. `own`: q's frames among k's
    (`fz.chunks`).
    """

    own: slice = slice(None)

    def __init__(self, layer: "Attention", tokens: Tensor, text: TextContext | None):
        self.layer, self.tokens, self.text = layer, tokens, text

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, F, N."""
        return tuple(self.tokens.shape[:3])

    def q(self, branches: slice = slice(None)) -> Tensor:
        return self._heads(self.layer.to_q(self.tokens[branches]))

    def k(self, branches: slice = slice(None)) -> Tensor:
        return self._heads(self._keys_or_values("to_k", branches))

    def v(self, branches: slice = slice(None)) -> Tensor:
        return self._heads(self._keys_or_values("to_v", branches))

    def keys_of(self, text: TextContext) -> Tensor:
        """A cross-attention's keys of other prompts, (B, L, Nh, D)."""
        return self._heads(text.project(f"{self.layer.site.name}.to_k", self.layer.to_k))

    def _keys_or_values(self, which: str, branches: slice) -> Tensor:
        linear = getattr(self.layer, which)
        if self.text is None:
            return linear(self.tokens[branches])
        return self.text.project(f"{self.layer.site.name}.{which}", linear)[branches]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.layer.heads, -1))


Attend = Callable[[Site, Operands], Tensor]


class Attention(nn.Module):
    """Projections around an attention that the caller's `attend(site, operands)` -> (B, F, N, Nh, D) computes."""

    def __init__(self, site: Site, heads: int, context_channels: int | None = None):
        super().__init__()
        channels = site.channels
        self.site, self.heads = site, heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, text: TextContext | None, attend: Attend) -> Tensor:
        return self.to_out[0](attend(self.site, Operands(self, tokens, text)).flatten(-2))


class TemporalAttention(nn.Module):
    """Tune-A-Video's attention of one pixel to itself in all frames; only tuned checkpoints have it."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        # (B, F, N, C) -> attention over F: (B, N, Nh, F, D)
        q, k, v = (
            linear(tokens).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.permute(0, 3, 1, 2, 4).flatten(-2))


class GEGLU(nn.Module):
    """value ⊙ gelu(gate), both linear in x (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU, then a linear layer. The indices of `net` are the checkpoint's."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward and, in tuned models, temporal attention; each a residual."""

    def __init__(self, name: str, channels: int, heads: int, stride: int, context_channels: int, temporal: bool):
        super().__init__()
        self.attn1 = Attention(Site(f"{name}.attn1", "self", stride, channels), heads)
        self.attn2 = Attention(Site(f"{name}.attn2", "cross", stride, channels), heads, context_channels)
        self.ff = FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        if temporal:
            self.attn_temporal = TemporalAttention(channels, heads)
            self.norm_temporal = nn.LayerNorm(channels)
        self.temporal = temporal

    def forward(self, x: Tensor, text: TextContext, attend: Attend) -> Tensor:
        x = x + self.attn1(self.norm1(x), None, attend)
        x = x + self.attn2(self.norm2(x), text, attend)
        x = x + self.ff(self.norm3(x))
        return x + self.attn_temporal(self.norm_temporal(x)) if self.temporal else x


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of tokens (..., C), as the linear layer that it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Transformer(nn.Module):
    """Norm per frame, project, one TransformerBlock, project back, residual."""

    def __init__(
        self, name: str, channels: int, heads: int, stride: int, context_channels: int, groups: int, temporal: bool
    ):
        super().__init__()
        self.norm = ClipGroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Pointwise(channels, channels, 1)
        block = TransformerBlock(f"{name}.transformer_blocks.0", channels, heads, stride, context_channels, temporal)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = Pointwise(channels, channels, 1)

    def forward(self, x: Tensor, frames: int, text: TextContext, attend: Attend) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.norm(x, 1).permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, frames))  # (B, F, N, C)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, attend)
        tokens = self.proj_out(tokens)
        return x + tokens.flatten(0, 1).unflatten(1, (h, w)).permute(0, 3, 1, 2)


class ClipGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics run over all frames of a branch (frames = F) or over each frame (frames = 1)."""

    def forward(self, x: Tensor, frames: int, time: Tensor | None = None, silu: bool = False) -> Tensor:
        """x: (B·F, C, H, W); time (B·F, C) is added before, SiLU applied after, if given and asked for."""
        return kernels.group_norm(x, frames, self.num_groups, self.weight, self.bias, self.eps, time=time, silu=silu)


class LowRankTemporalConv(nn.Module):
    """FateZero's low-rank residual over time: two bias-free convolutions of length 3 through `rank` channels."""

    def __init__(self, channels: int, rank: int):
        super().__init__()
        self.down = nn.Conv1d(channels, rank, 3, padding=1, bias=False)
        self.up = nn.Conv1d(rank, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of each frame; in tuned models followed by a convolution over time at each pixel.

    temporal: None (no such layer), 0 (full rank) or the rank.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, temporal: int | None = None):
        super().__init__(c_in, c_out, 3, stride=stride, padding=1)
        self.temporal = temporal
        if temporal is not None:
            self.conv_temporal = (
                LowRankTemporalConv(c_out, temporal) if temporal else nn.Conv1d(c_out, c_out, 3, padding=1)
            )

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.over_time(self.convolve(x), frames)

    def convolve(self, x: Tensor) -> Tensor:
        """Each frame on its own, (B·F, C, H, W)."""
        return super().forward(x)

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """The convolution over the frames of a branch, in tuned models."""
        if self.temporal is None:
            return x
        _, _, h, w = x.shape
        x = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1)  # (B, H, W, C, F)
        x = self.conv_temporal(x.flatten(0, 2)).unflatten(0, (-1, h, w))
        return x.permute(0, 4, 3, 1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class ResnetBlock(nn.Module):
    """norm, SiLU, 3x3, + time, norm, SiLU, 3x3, + shortcut. norm_frames: how many frames the
    norms see at once, all of a branch or one.
    """

    def __init__(self, c_in: int, c_out: int, time_channels: int, groups: int, eps: float, ranks: "Ranks"):
        super().__init__()
        self.norm1 = ClipGroupNorm(groups, c_in, eps)
        self.conv1 = Conv3x3(c_in, c_out, temporal=ranks(c_out))
        self.time_emb_proj = nn.Linear(time_channels, c_out)
        self.norm2 = ClipGroupNorm(groups, c_out, eps)
        self.conv2 = Conv3x3(c_out, c_out, temporal=ranks(c_out))
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor, frames: int, norm_frames: int, alter: "Alter | None" = None) -> Tensor:
        h = self.conv1(self.norm1(x, norm_frames, silu=True), frames)
        h = self.conv2(self.norm2(h, norm_frames, self.time_emb_proj(time), silu=True), frames)
        h = alter(self, h) if alter else h
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


Ranks = Callable[[int], int | None]
# (block, its residual (B·F, C, H, W)) -> what is added in the residual's place
Alter = Callable[[ResnetBlock, Tensor], Tensor]


class Downsample(nn.Module):
    def __init__(self, channels: int, ranks: Ranks):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2, temporal=ranks(channels))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.conv(x, frames)


class Upsample(nn.Module):
    def __init__(self, channels: int, ranks: Ranks):
        super().__init__()
        self.conv = Conv3x3(channels, channels, temporal=ranks(channels))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), frames)


class TimeEmbedding(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoidal(t: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Timesteps (B,) as sines and cosines of geometric frequencies, (B, channels), float32 (Vaswani et al. 2017,
    3.5).
    """
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * exponent.exp()
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=-1)
