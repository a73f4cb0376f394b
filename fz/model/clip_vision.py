"""CLIP's image tower (a ViT), written by hand, and a pair of towers that gives comparable features of pictures and
sentences.

Arithmetic and parameter names are those of transformers' CLIPModel (Radford et al. 2021, section 2.4), to which tests
compare it; the text tower, of the same layers, is `fz.model.clip_text`. Only inference. How weights are found and
translated is `fz.weights.clip`' question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fz.errors import FzError
from fz.model.clip_layers import Layer, check_shape
from fz.model.clip_text import TextTower

if TYPE_CHECKING:
    from fz.prompts.tokenizer import ClipTokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ViTConfig:
    """The image tower's shape, by transformers' names; the defaults are those of OpenAI's ViT-B/32. projection_dim: of
    the features.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_shape(self)
        if self.image_size % self.patch_size:
            raise FzError("clip: patches do not divide the picture. Is its config.json CLIP's?")


class Embeddings(nn.Module):
    """Patches, a class token before them, and learned positions."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return x + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # the name is transformers'
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class ImageTower(nn.Module):
    """Pictures to features: `vision_model.*` and `visual_projection.weight` of transformers' CLIPModel."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def states(self, pictures: Tensor) -> list[Tensor]:
        """(n, 3, S, S) preprocessed -> after the embedding and after every layer, (n, 1 + patches, hidden_size)
        each.
        """
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pictures))
        out = [x]
        for layer in self.vision_model.encoder["layers"]:
            out.append(layer(out[-1]))
        return out

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, S, S) preprocessed -> (n, projection_dim), not normalised."""
        return self.visual_projection(self.vision_model.post_layernorm(self.states(pictures)[-1][:, 0]))


@dataclass(frozen=True)
class Preprocess:
    """Short side to `size` (bicubic, as pillow does it on 8 bits), `size` x `size` from the centre, to mean 0 and
    deviation 1.
    """

    size: int = 224
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, frames: np.ndarray) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, 3, size, size) float32."""
        h, w = frames.shape[1:3]
        short = min(h, w)
        height, width = (self.size * side // short for side in (h, w))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        out = []
        for frame in frames:
            large = np.asarray(
                Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BICUBIC)
            )
            out.append(large[top : top + self.size, left : left + self.size])
        pictures = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255
        return (pictures - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


class ClipModel:
    """Both towers, the tokenizer and the preprocessing. name: what to call it in tables."""

    def __init__(
        self,
        tower: ImageTower,
        text: TextTower,
        tokenizer: "ClipTokenizer",
        preprocess: Preprocess,
        name: str,
    ):
        self.tower, self.text, self.tokenizer, self.preprocess, self.name = tower, text, tokenizer, preprocess, name

    @torch.no_grad()
    def images(self, frames: np.ndarray, batch: int = 16) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, D), unit length."""
        pictures = self.preprocess(frames)
        return F.normalize(torch.cat([self.tower(part) for part in pictures.split(batch)]), dim=-1)

    @torch.no_grad()
    def patches(self, frames: np.ndarray, batch: int = 16) -> list[Tensor]:
        """(F, H, W, 3) uint8 -> each layer's patch states, (F, patches, hidden_size), unit length."""
        parts = [self.tower.states(part) for part in self.preprocess(frames).split(batch)]
        return [F.normalize(torch.cat(layer)[:, 1:], dim=-1) for layer in zip(*parts, strict=True)]

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(n, D), unit length. A sentence longer than the text tower loses its end, as CLIP's own tokenizer has it."""
        length = self.text.config.max_position_embeddings
        ids = torch.tensor(self.tokenizer.rows(prompts, length))
        # without an attention mask: padding stands after the end token, whose state alone is read, so it need not be 77
        # long either
        return F.normalize(self.text(ids), dim=-1)
