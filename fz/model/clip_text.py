"""CLIP's text tower, written by hand: a sentence's states, and the feature that can be compared with pictures'.

Arithmetic and parameter names are those of transformers' CLIPTextModel (Radford et al. 2021, section 2.4), to which
tests compare it: importing that takes as long as all else that a run imports. How weights are found and translated is
`fz.weights`' question.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fz.model.clip_layers import Layer, check_shape

# what configs of OpenAI's time say of the end token, whatever its number is: it is the largest
ANY_END = 2


@dataclass(frozen=True)
class TextConfig:
    """The text tower's shape, by transformers' names; the defaults are those of OpenAI's ViT-B/32. projection_dim: of
    the features.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 1

    def __post_init__(self):
        check_shape(self)


class States(NamedTuple):
    """last_hidden_state: after the final norm, (n, L, hidden_size); pooler_output: that of the end token."""

    last_hidden_state: Tensor
    pooler_output: Tensor


class Table(nn.Embedding):
    """Rows that a file has: none are drawn first, for which PyTorch, on its meta device, imports its compiler."""

    def reset_parameters(self) -> None:
        pass


class Embeddings(nn.Module):
    """Tokens, and learned positions."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = Table(config.vocab_size, config.hidden_size)
        self.position_embedding = Table(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextModel(nn.Module):
    """Tokens to states: `text_model.*` of transformers' CLIPModel."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config, causal=True) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    @property
    def device(self) -> torch.device:
        return self.final_layer_norm.weight.device

    def forward(self, input_ids: Tensor) -> States:
        """input_ids: (n, L), L of at most `max_position_embeddings`."""
        x = self.embeddings(input_ids)
        for layer in self.encoder["layers"]:
            x = layer(x)
        x = self.final_layer_norm(x)
        end = self.config.eos_token_id
        ends = (input_ids if end == ANY_END else (input_ids == end).int()).argmax(dim=1)
        return States(x, x[torch.arange(len(x), device=x.device), ends])


class TextTower(nn.Module):
    """Sentences to features: `text_model.*` and `text_projection.weight` of transformers' CLIPModel."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(n, L) -> (n, projection_dim), not normalised."""
        return self.text_projection(self.text_model(input_ids).pooler_output)
