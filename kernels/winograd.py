"""3x3 convolutions as Winograd's F(m x m, 3 x 3): tiles unfolded, one batched GEMM, tiles folded back.

Lavin and Gray, 2015. 2.25 (m = 2) to 4 (m = 4) times fewer multiplications than the direct way, and all of them in
products that a CPU does near its peak. The price is memory for the transformed weights, 16/9 (m = 2) or 4 (m = 4) times
the weight's own; `fz.model.fast_cpu` and `fast_vae` decide where that pays. Inference in float32 only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.kernels.gemm import Packed, prefers_onednn

UPSAMPLED = "upsampled"

# Bᵀ, G and Aᵀ of F(2, 3) and F(4, 3), interpolation points 0, ±1 and 0, ±1, ±2 (Lavin and Gray 2015, section 4);
# UPSAMPLED: two outputs of (x₋, x, x, x₊) doubled by nearest neighbours, (w₀ + w₁ + w₂) x - w₀ (x - x₋) and
# (w₀ + w₁ + w₂) x + w₂ (x₊ - x), of three products
_MATRICES = {
    UPSAMPLED: (
        [[0, 1, 0], [-1, 1, 0], [0, -1, 1]],
        [[1, 1, 1], [1, 0, 0], [0, 0, 1]],
        [[1, -1, 0], [1, 0, 1]],
    ),
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def _kron(m: int | str, which: int) -> Tensor:
    """The two-dimensional transform as one matrix on flattened tiles, float64."""
    matrix = torch.tensor(_MATRICES[m][which], dtype=torch.float64)
    return torch.kron(matrix, matrix)


class Winograd:
    """A 3x3 convolution, stride 1, zero padding 1, with its weight transformed once.

    weight: (C_out, C_in, 3, 3) float32; m: output tile, 2 or 4, or UPSAMPLED: of the picture with doubled sides.
    rows: tiles that it will usually see (B · H/m · W/m). band: bytes that a transformed band of rows may take, None for
    the whole picture at once; bands compute the same to rounding.
    Relative error against float64: about 1e-6 for m = 2 and 3e-6 for m = 4 (direct: 3e-7).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, m: int | str, rows: int = 1024, band: int | None = None):
        self.m, self.bias, self.band = m, None if bias is None else bias.detach(), band
        # sides of a tile of the output and of the input, and by how much the next tile's input begins later
        self.side, self.t, self.step = (2, 3, 1) if m == UPSAMPLED else (m, m + 2, m)
        self.c_out, c_in = weight.shape[:2]
        g = _kron(m, 1).to(weight)  # (t², 9)
        # summed in float32: float64 would hold a copy of 8/9 t² times the weight
        transformed = (g @ weight.detach().reshape(self.c_out * c_in, 9).T).unflatten(1, (self.c_out, c_in))
        self.to_tile, self.from_tile = _kron(m, 0).to(weight), _kron(m, 2).to(weight)
        if prefers_onednn():
            self.products = [Packed(w, rows=rows) for w in transformed]
        else:
            self.products = transformed.transpose(1, 2).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W), UPSAMPLED (B, C_out, 2 H, 2 W); both channels_last."""
        side, scale = self.side, self.side // self.step
        b, c, h, w = x.shape
        th, tw = -(-h // self.step), -(-w // self.step)
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + tw * self.step - w, 1, 1 + th * self.step - h))
        out = x.new_empty(b, th, side, tw, side, self.c_out)
        tile_row = x.element_size() * self.t**2 * b * tw * max(c, self.c_out)
        rows = th if self.band is None else max(self.band // tile_row, 1)
        for top in range(0, th, rows):
            self.convolve(x, top, out[:, top : top + rows])
        return out.view(b, th * side, tw * side, -1)[:, : scale * h, : scale * w].permute(0, 3, 1, 2)

    def convolve(self, x: Tensor, top: int, out: Tensor) -> None:
        """Fill rows of tiles, of which the first is number `top`. x: padded, (B, H', W', C_in); out: (B, rows, side,
        columns, side, C_out).
        """
        t, step = self.t, self.step
        b, th, side, tw, _, _ = out.shape
        x = x[:, step * top : step * (top + th - 1) + t]
        sb, sh, sw, _ = x.stride()
        tiles = x.as_strided((t, t, b, th, tw, x.shape[-1]), (sh, sw, sb, step * sh, step * sw, 1)).reshape(t * t, -1)
        spectrum = (self.to_tile @ tiles).view(t * t, b * th * tw, -1)
        del tiles
        product = self.multiply(spectrum).view(t * t, -1)
        product = (self.from_tile @ product).view(side, side, b, th, tw, -1).permute(2, 3, 0, 4, 1, 5)
        if self.bias is None:
            out.copy_(product)
        else:
            torch.add(product, self.bias, out=out)

    def multiply(self, spectrum: Tensor) -> Tensor:
        """(t², tiles, C_in) -> (t², tiles, C_out): one product for each point of the tile."""
        if isinstance(self.products, Tensor):
            return torch.bmm(spectrum, self.products)
        return torch.cat([packed(x) for packed, x in zip(self.products, spectrum, strict=True)])


def weight_bytes(c_out: int, c_in: int, m: int | str) -> int:
    """Memory that the transformed weight takes, float32."""
    return 4 * (3 if m == UPSAMPLED else m + 2) ** 2 * c_out * c_in


def seconds_of(c_out: int, c_in: int, h: int, w: int, frames: int, m: int) -> float:
    """A model of the time one convolution takes: multiplications at 300 GFLOP/s, and its weight read once at 20 GB/s.

    Only the order of m = 2 and m = 4 and the gain over the direct way (m = 0, at 100 GFLOP/s) matter; both machines it
    was held against (one Intel, one AMD, two cores) agree with it there.
    """
    if m == 0:
        return 2 * 9 * frames * h * w * c_out * c_in / 100e9
    tiles = frames * -(-h // m) * -(-w // m)
    return 2 * (m + 2) ** 2 * tiles * c_out * c_in / 300e9 + weight_bytes(c_out, c_in, m) / 20e9
