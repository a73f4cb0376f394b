"""Where the VAE's training starts: as block averages in luminance and two colour differences, and their enlargement.

From random weights a small VAE spends its first thousands of steps on finding colour, which GroupNorm hides. So colours
are laid on a straight path: pairs (x, -x) beside constants (K, -K) in each group leave a group's mean 0 and its
deviation nearly fixed, and silu(x) - silu(-x) = x. Residual branches begin at zero. Training then adds what averages
lose.
"""

import torch
from torch import Tensor, nn

from fz.model.vae import VAE, Resample

K = 2.0
# rows: luminance and two colour differences of (R, G, B)
AXES = torch.tensor([[0.6, 0.6, 0.6], [1.0, -1.0, 0.0], [0.6, 0.6, -1.2]])


@torch.no_grad()
def warm_start(vae: VAE) -> None:
    """Set a fresh VAE's weights in place. Widths must be at least 12, multiples of four a group, and at least 4
    channels latent.
    """
    for module in vae.modules():
        if hasattr(module, "conv_shortcut"):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                straight(module.conv_shortcut)
        elif hasattr(module, "to_out"):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif isinstance(module, Resample):
            # 2x2 averages down; a tent up, over the repeated pixels
            kernel = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]]) if module.down else tent()
            nn.init.zeros_(module.conv.bias)
            module.conv.weight.copy_(torch.eye(len(module.conv.weight))[:, :, None, None] * kernel)
    lay(vae.encoder.conv_in, torch.eye(3))
    read(vae.encoder.conv_out, AXES)
    lay(vae.decoder.conv_in, torch.linalg.inv(AXES))
    read(vae.decoder.conv_out, torch.eye(3))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.zeros_(conv.bias)
        conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])


def tent() -> Tensor:
    side = torch.tensor([0.25, 0.5, 0.25])
    return side[:, None] * side[None]


def straight(conv: nn.Conv2d) -> None:
    """A 1x1 convolution that passes the channels that both sides have; the rest stays as it was."""
    n = min(conv.weight.shape[:2])
    nn.init.zeros_(conv.bias)
    conv.weight[:n] = torch.eye(n, conv.weight.shape[1])[:, :, None, None]


def lay(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Channels 4i … 4i + 3 become x_i, -x_i, K, -K, with x = matrix · the first three input channels."""
    for i, row in enumerate(matrix):
        conv.weight[4 * i : 4 * i + 4] = 0
        conv.bias[4 * i : 4 * i + 4] = torch.tensor([0, 0, K, -K])
        conv.weight[4 * i, :3, 1, 1], conv.weight[4 * i + 1, :3, 1, 1] = row, -row


def read(conv: nn.Conv2d, matrix: Tensor) -> None:
    """The first three output channels become matrix · x, of what `lay` laid, after a norm and a SiLU."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    # a group's deviation is about sqrt((K² + E x²) / 2), E x² about 0.4
    for i in range(3):
        conv.weight[:3, 4 * i, 1, 1] = matrix[:, i] * ((K**2 + 0.4) / 2) ** 0.5
        conv.weight[:3, 4 * i + 1, 1, 1] = -conv.weight[:3, 4 * i, 1, 1]
