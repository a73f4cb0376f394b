"""3x3 convolutions as Winograd's F(m x m, 3 x 3): tiles unfolded, one batched GEMM, tiles folded back.

Lavin and Gray, 2015. 2.25 (m = 2) to 4 (m = 4) times fewer multiplications than the direct way, and all of them in
products that a CPU does near its peak. The price is memory for the transformed weights, 16/9 (m = 2) or 4 (m = 4) times
the weight's own; `fz.model.fast_cpu` decides where that pays. Inference in float32 only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.kernels.gemm import Packed, prefers_onednn

# Bᵀ, G and Aᵀ of F(2, 3) and F(4, 3), interpolation points 0, ±1 and 0, ±1, ±2 (Lavin and Gray 2015, section 4)
_MATRICES = {
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


def _kron(m: int, which: int) -> Tensor:
    """The two-dimensional transform as one matrix on flattened tiles, float64."""
    matrix = torch.tensor(_MATRICES[m][which], dtype=torch.float64)
    return torch.kron(matrix, matrix)


class Winograd:
    """A 3x3 convolution, stride 1, zero padding 1, with its weight transformed once.

    weight: (C_out, C_in, 3, 3) float32; m: output tile, 2 or 4; rows: tiles that it will usually see (B · H/m · W/m).
    Relative error against float64: about 1e-6 for m = 2 and 3e-6 for m = 4 (direct: 3e-7).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, m: int, rows: int = 1024):
        self.m, self.bias = m, None if bias is None else bias.detach()
        c_out, c_in = weight.shape[:2]
        g = _kron(m, 1).to(weight)  # ((m + 2)², 9)
        # summed in float32: float64 would hold a copy of 8/9 (m + 2)² times the weight
        transformed = (g @ weight.detach().reshape(c_out * c_in, 9).T).unflatten(1, (c_out, c_in))
        self.to_tile, self.from_tile = _kron(m, 0).to(weight), _kron(m, 2).to(weight)
        if prefers_onednn():
            self.products = [Packed(w, rows=rows) for w in transformed]
        else:
            self.products = transformed.transpose(1, 2).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W), both channels_last."""
        m, t = self.m, self.m + 2
        b, c, h, w = x.shape
        th, tw = -(-h // m), -(-w // m)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + tw * m - w, 1, 1 + th * m - h))  # (B, H', W', C)
        sb, sh, sw, _ = padded.stride()
        tiles = padded.as_strided((t, t, b, th, tw, c), (sh, sw, sb, m * sh, m * sw, 1)).reshape(t * t, -1)
        spectrum = (self.to_tile @ tiles).view(t * t, b * th * tw, c)
        product = self.multiply(spectrum).view(t * t, -1)
        out = (self.from_tile @ product).view(m, m, b, th, tw, -1).permute(2, 3, 0, 4, 1, 5)  # (B, th, m, tw, m, C_out)
        out = (out.contiguous() if self.bias is None else torch.add(out, self.bias).contiguous()).view(
            b, th * m, tw * m, -1
        )
        return out[:, :h, :w].permute(0, 3, 1, 2)

    def multiply(self, spectrum: Tensor) -> Tensor:
        """((m + 2)², tiles, C_in) -> ((m + 2)², tiles, C_out): one product for each point of the tile."""
        if isinstance(self.products, Tensor):
            return torch.bmm(spectrum, self.products)
        return torch.cat([packed(x) for packed, x in zip(self.products, spectrum, strict=True)])


def weight_bytes(c_out: int, c_in: int, m: int) -> int:
    """Memory that the transformed weight takes, float32."""
    return 4 * (m + 2) ** 2 * c_out * c_in


def seconds_of(c_out: int, c_in: int, h: int, w: int, frames: int, m: int) -> float:
    """A model of the time one convolution takes: multiplications at 300 GFLOP/s, and its weight read once at 20 GB/s.

    Only the order of m = 2 and m = 4 and the gain over the direct way (m = 0, at 100 GFLOP/s) matter; both machines it
    was held against (one Intel, one AMD, two cores) agree with it there.
    """
    if m == 0:
        return 2 * 9 * frames * h * w * c_out * c_in / 100e9
    tiles = frames * -(-h // m) * -(-w // m)
    return 2 * (m + 2) ** 2 * tiles * c_out * c_in / 300e9 + weight_bytes(c_out, c_in, m) / 20e9
