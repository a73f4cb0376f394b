"""Which pixels of a picture are edges (Canny 1986)? In torch, all frames at once: Gaussian, Sobel, non-maximum
suppression, hysteresis.

Gradients are in the units of OpenCV's function of that name (8-bit grey, |dx| + |dy|), so that thresholds mean what
they mean in other programs; a Gaussian of one pixel comes first, which those leave to their caller.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 50.0, 100.0
SIGMA = 1.0  # pixels
LUMA = (0.299, 0.587, 0.114)


def edges(frames: Tensor, low: float = LOW, high: float = HIGH) -> Tensor:
    """frames (F, 3, H, W) in [-1, 1] to (F, H, W) bool: pixels whose gradient is the largest across their edge and
    above `high`, or above `low` and connected with one that is.
    """
    grey = (frames.float() + 1) * 127.5
    grey = torch.einsum("fchw,c->fhw", grey, torch.tensor(LUMA, device=frames.device))[:, None]
    dx, dy = gradients(blurred(grey))
    strength = dx.abs() + dy.abs()
    ridge = thin(strength, dx, dy)
    return connected(ridge & (strength > high), ridge & (strength > low))[:, 0]


def blurred(x: Tensor, sigma: float = SIGMA) -> Tensor:
    """x (F, 1, H, W) through a Gaussian of 4 sigma to each side."""
    reach = round(4 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives of x (F, 1, H, W) to the right and downwards."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=x.dtype, device=x.device)
    both = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    return both[:, :1], both[:, 1:]


def thin(strength: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Is a pixel's gradient larger than that of the two neighbours across its edge? The direction is rounded to 45°."""
    padded = F.pad(strength, (1, 1, 1, 1))
    h, w = strength.shape[-2:]

    def neighbour(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + h, 1 + right : 1 + right + w]

    steep = dy.abs() > dx.abs() * 2.414  # tan 67.5°
    flat = dy.abs() < dx.abs() * 0.4142  # tan 22.5°
    falling = (dx * dy) > 0  # the gradient points right and down, or left and up
    pairs = {"vertical": (1, 0), "horizontal": (0, 1), "falling": (1, 1), "rising": (1, -1)}
    where = {
        "vertical": steep,
        "horizontal": flat,
        "falling": ~steep & ~flat & falling,
        "rising": ~steep & ~flat & ~falling,
    }
    ridge = torch.zeros_like(steep)
    for name, (down, right) in pairs.items():
        # of equal neighbours one stays
        largest = (strength > neighbour(-down, -right)) & (strength >= neighbour(down, right))
        ridge |= where[name] & largest
    return ridge


def connected(seeds: Tensor, candidates: Tensor) -> Tensor:
    """The candidates (F, 1, H, W) that a path of candidates, diagonals included, connects with a seed."""
    found = seeds
    while True:
        grown = (F.max_pool2d(found.float(), 3, stride=1, padding=1) > 0) & candidates
        if torch.equal(grown, found):
            return found
        found = grown


def outlines(frames: Tensor, low: float = LOW, high: float = HIGH) -> Tensor:
    """The edges as pictures of control: (F, 3, H, W) in [-1, 1], white on black."""
    return edges(frames, low, high)[:, None].expand(-1, 3, -1, -1).float() * 2 - 1
