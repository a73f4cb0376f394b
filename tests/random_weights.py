"""For tests: random weights that keep activations of order one, so that a wrong layer shows in the output at any depth
and width.
"""

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a model with random weights: sums of unit variance, norms near one, biases small, queries sharp enough to
    choose keys.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=generator)
            if name.endswith("embedding.weight"):
                p.mul_(0.5)
            elif p.ndim > 1:
                p.mul_((2.0 if "to_q" in name else 1.0) / p[0].numel() ** 0.5)
            elif name.endswith("bias"):
                p.mul_(0.1)
            else:
                p.mul_(0.1).add_(1)
    return model.eval().requires_grad_(False)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| / |expected|; NaN and infinity are no small number."""
    assert got.shape == expected.shape and expected.isfinite().all()
    return ((got - expected).double().norm() / expected.double().norm()).item()
