"""What are the two towers of CLIP made of? A layer, by the names of transformers' CLIPModel (Radford et al. 2021)."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fz.errors import FzError, suggest


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TowerConfig(Protocol):
    """What a layer depends on."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float


def check_shape(config: TowerConfig) -> None:
    """Raises FzError for a tower of which there is none."""
    if config.hidden_act not in ACTIVATIONS:
        raise FzError(
            f"clip: got activation {config.hidden_act!r}, expected quick_gelu or "
            f"gelu.{suggest(config.hidden_act, ACTIVATIONS)}"
        )
    if config.hidden_size % config.num_attention_heads:
        raise FzError("clip: heads do not divide the width. Is its config.json CLIP's?")


class Attention(nn.Module):
    """causal: a token attends to those before it and itself."""

    def __init__(self, config: TowerConfig, causal: bool = False):
        super().__init__()
        self.heads, self.causal = config.num_attention_heads, causal
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    """Of either tower."""

    def __init__(self, config: TowerConfig, causal: bool = False):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config, causal)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))
