"""What makes the VAE fast on a CPU: Winograd's convolutions in bands of rows, upsamplers that read the small picture.

A fast VAE is another model with the same parameters, made for the time of one clip's encoding or decoding, since the
transformed weights take four times the plain ones' memory. What is made fast depends on shapes and on the machine
alone. Measurements are in bench/LOG.md.
"""

import torch
from torch import Tensor, nn

from fz.kernels.winograd import UPSAMPLED, Winograd, weight_bytes
from fz.model.fast_cpu import LEAST_WINOGRAD, keep_freed_memory, total_memory
from fz.model.swap import swapped
from fz.model.vae import VAE, Resample

TILE = 4
# bytes of a transformed band of rows: smaller ones multiply too few rows at once, larger ones gain nothing
BAND = 2**26
# pixels of a latent below which transforming the weights takes longer than one picture gains
LEAST_PIXELS = 32 * 32


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution that multiplies Winograd's way where no gradients are wanted."""

    def __init__(self, plain: nn.Conv2d):
        super().__init__(plain.in_channels, plain.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.product = Winograd(plain.weight, plain.bias, TILE, band=BAND)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


class FastUpsample(Resample):
    """An upsampler that convolves the small picture, with 9 products a pixel in place of 36."""

    def __init__(self, plain: Resample):
        with torch.device("meta"):
            super().__init__(plain.conv.in_channels, down=False)
        self.conv = plain.conv
        self.product = Winograd(plain.conv.weight, plain.conv.bias, UPSAMPLED, band=BAND)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.product(x)


def prepare(vae: VAE, part: str, latent_size: tuple[int, int], conv: str = "auto") -> VAE:
    """The VAE with its part, 'encoder' or 'decoder', made fast for latents of that (h, w); the given one stays as it
    is. conv: 'auto' or 'direct', as the UNet's.
    """
    if not takes(vae, latent_size, conv):
        return vae
    keep_freed_memory()

    def replace(name: str, layer: nn.Module) -> nn.Module | None:
        if not name.startswith(part):
            return None
        kind = kind_of(layer)
        return None if kind is None else FastUpsample(layer) if kind == UPSAMPLED else WinogradConv(layer)

    return swapped(vae, replace)


def takes(vae: VAE, latent_size: tuple[int, int], conv: str = "auto") -> bool:
    """Is the VAE made fast for latents of that (h, w)? In float32 on a CPU, where an eighth of the memory has room."""
    weight = vae.quant_conv.weight
    on_cpu = weight.device.type in ("cpu", "meta") and weight.dtype == torch.float32
    large = latent_size[0] * latent_size[1] >= LEAST_PIXELS
    return conv == "auto" and on_cpu and large and 0 < transformed_bytes(vae) <= total_memory() // 8


def transformed_bytes(vae: VAE) -> int:
    """Memory of the transformed weights of the part that has more of them, and of a band with its products."""
    most = max(bytes_of(vae.encoder), bytes_of(vae.decoder))
    return most + 4 * BAND if most else 0


def bytes_of(layer: nn.Module) -> int:
    """Memory of the transformed weights of a layer and those in it."""
    kind = kind_of(layer)
    if kind is None:
        return sum(map(bytes_of, layer.children()))
    conv = layer.conv if kind == UPSAMPLED else layer
    return weight_bytes(conv.out_channels, conv.in_channels, kind)


def kind_of(layer: nn.Module) -> int | str | None:
    """The tile that a layer takes, or None for those that stay: narrow ones, strides, 1x1."""
    if isinstance(layer, Resample):
        return UPSAMPLED if not layer.down and layer.conv.in_channels >= LEAST_WINOGRAD else None
    of_3x3 = isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == (
        (3, 3),
        (1, 1),
        (1, 1),
    )
    return TILE if of_3x3 and min(layer.in_channels, layer.out_channels) >= LEAST_WINOGRAD else None
