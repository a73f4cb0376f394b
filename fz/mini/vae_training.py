"""How is the miniature's VAE trained? On drawn pictures; its latents have mean 0 and deviation 1."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.mini.data import draw_many, to_unit
from fz.mini.shape import VAE_JSON
from fz.mini.stage import Stage
from fz.mini.state import undamaged
from fz.mini.warm import warm_start
from fz.model.vae import SCALE, VAE, VAEConfig
from fz.tensors import write_pt


def pictures(state: Path, stories: int) -> tuple[Tensor, list[str]]:
    """The training pictures (n, 2, 3, 128, 128) uint8 and their captions; drawn once. One story in 13 is of an empty
    scene.
    """
    path = state / "pictures.pt"
    if not path.exists():
        full, empty = draw_many(0, stories), draw_many(stories, stories // 12, empty=True)
        drawn = {"frames": torch.cat([full.frames, empty.frames]), "captions": full.captions + empty.captions}
        write_pt(path, drawn, "state")
    with undamaged(path):
        saved = torch.load(path, weights_only=True, mmap=True)
        return saved["frames"], saved["captions"]


def crops(frames: Tensor, batch: int, side: int) -> Tensor:
    """A batch of crops at random, in [-1, 1], half of them mirrored."""
    out = []
    for i in torch.randint(len(frames), (batch,)).tolist():
        y, x = (int(torch.randint((full - side) // 4 + 1, ()) * 4) for full in frames.shape[-2:])
        crop = frames[i, int(torch.randint(2, ())), :, y : y + side, x : x + side]
        out.append(crop.flip(-1) if torch.rand(()) < 0.5 else crop)
    return to_unit(torch.stack(out)).contiguous(memory_format=torch.channels_last)


def train_vae(state: Path, frames: Tensor, minutes: float) -> VAE:
    """The VAE: absolute and squared error of crops, latents with a little noise so that near latents decode alike."""
    vae = VAE(VAEConfig.from_json(VAE_JSON))
    warm_start(vae)
    vae.to(memory_format=torch.channels_last)
    stage = Stage(state, "vae", {"vae": vae}, rate=2e-3, minutes=minutes)

    def loss(step: int) -> Tensor:
        x = crops(frames, 16, 64)
        z = vae.encode(x)
        out = vae.decode(z + 0.03 * torch.randn_like(z))
        return (
            F.l1_loss(out, x)
            + 2 * F.mse_loss(out, x)
            + 1e-3 * (z.square().mean() - 1).clamp(min=0)
            + 1e-3 * z.mean().square()
        )

    stage.run(loss)
    return stage.finished()["vae"]


@torch.no_grad()
def unit_latents(vae: VAE, frames: Tensor) -> None:
    """Fold a shift and a factor into the VAE's 1x1 convolutions: each channel of a latent times SCALE then has mean 0,
    deviation 1.
    """
    z = torch.cat([vae.encode(to_unit(part[:, 0])) for part in frames[:512].split(32)])
    mean, factor = z.mean((0, 2, 3)), 1 / (SCALE * z.std((0, 2, 3)))
    out, back = vae.quant_conv, vae.post_quant_conv
    out.bias[:4] = (out.bias[:4] - mean) * factor
    out.weight[:4] *= factor[:, None, None, None]
    # decode(z / factor + mean)
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight /= factor[None, :, None, None]
