"""`fz.tune --lora-rank`: what does a LoRA change, and how is it learned from pictures?

W + up · down in every linear layer of the UNet's transformers, as kohya's trainer has it (Hu et al. 2021, arXiv
2106.09685): up begins as zero, so that training starts from the very model that it was given. A clip's frames are
pictures of their own, each under its caption: what is learned is for any Stable Diffusion v1, without layers over time.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fz.attention import Plain
from fz.clips.decode import open_source
from fz.clips.files import short
from fz.clips.images import Images
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.model.layers import TextContext, Transformer
from fz.model.unet import UNet
from fz.settings.config import ClipSettings
from fz.tuning.trainer import Lesson, Recipe, Tuner

RECIPE = Recipe(1e-4, conv=False, low_rank=True)
PICTURES = 4  # a draw, or all where there are fewer
OWN = FrameIndex(())


class LowRank(nn.Module):
    """The change of one weight, (O, I) or (O, I, 1, 1): up (O, r) times down (r, I)."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        width, inner = weight.flatten(1).shape
        down = (torch.rand((rank, inner), generator=generator) * 2 - 1) * inner**-0.5
        self.down = nn.Parameter(down.to(weight.device, weight.dtype))
        self.up = nn.Parameter(torch.zeros(width, rank, device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view(weight.shape)


def adapt(unet: UNet, rank: int, seed: int = 0) -> UNet:
    """Give every linear layer of the UNet's transformers, but those over time, a change of so high a rank at most; in
    place.
    """
    generator = torch.Generator().manual_seed(seed)
    for transformer in (m for m in unet.modules() if isinstance(m, Transformer)):
        for name, layer in list(transformer.named_modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and "attn_temporal" not in name:
                low = LowRank(layer.weight, min(rank, *layer.weight.shape[:2]), generator)
                parametrize.register_parametrization(layer, "weight", low)
    return unet


def changes(unet: UNet) -> dict[str, LowRank]:
    """By the name of the layer."""
    marks = (name.rpartition(".parametrizations.") for name, m in unet.named_modules() if isinstance(m, LowRank))
    return {name: unet.get_submodule(f"{name}.parametrizations.weight.0") for name, _, _ in marks}


class PictureTuner(Tuner):
    """A training whose lessons are pictures: z (N, 4, h, w), embedding (N, 77, Cx) of their captions."""

    def loss(self, lesson: Lesson, number: int) -> Tensor:
        """|eps - eps_theta|² of a few pictures, each at a timestep of its own, times its weight."""
        generator = torch.Generator().manual_seed((self.seed % 2**19 << 44) + number)
        chosen = torch.randperm(len(lesson.z), generator=generator)[:PICTURES]
        t = torch.randint(len(self.alpha_bars), (len(chosen),), generator=generator)
        eps = torch.randn((len(chosen), *lesson.z.shape[1:]), generator=generator).to(self.device)
        a = torch.tensor([self.alpha_bars[int(i)] for i in t], device=self.device).view(-1, 1, 1, 1)
        z = a**0.5 * lesson.z[chosen] + (1 - a) ** 0.5 * eps
        text = TextContext(lesson.embedding[chosen])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            # each picture a clip of one frame
            out = self.unet(z[:, None], t.to(self.device), text, Plain(OWN))[:, 0]
        return self.error(out, eps, a)


def captions(clip: ClipSettings, indices: Sequence[int], prompt: str) -> list[str]:
    """What each frame shows: NAME.txt beside a picture of a folder, else the prompt. Raises FzError for one that cannot
    be read.
    """
    source = open_source(clip.path)
    if not isinstance(source, Images):
        return [prompt] * len(indices)
    return [caption(source.paths[i].with_suffix(".txt")) or prompt for i in indices]


def caption(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())[:10_000] or None
    except (OSError, UnicodeDecodeError) as error:
        raise FzError(f"video: {file} is no caption ({short(error)}). Expected a sentence in UTF-8.") from None
