"""Where an edit may change a clip: the mask of one step at any size, the steady one that keeps the background, a user's
mask from files.

M is the user's mask if there is one, else eq. 6 (`fz.fusion.blend_mask`). Masks are (F, h, w) bool, True = edited; a
user's is kept as shares (F, H, W) in [0, 1] of the clip's own pixels and reduced by areas to each size.
"""

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.fusion import MAP_STRIDE, Fusion, blend_mask

Size = tuple[int, int]


def edit_mask(fusion: Fusion, source_map: Tensor, latent_size: Size, size: Size) -> Tensor | None:
    """M of one step at `size`; None where the fusion has neither a user's mask nor mask words."""
    if fusion.user_mask is not None:
        return reduced(fusion.user_mask, size).to(source_map.device)
    if fusion.mask_words is None:
        return None
    map_size = (latent_size[0] // MAP_STRIDE, latent_size[1] // MAP_STRIDE)
    return blend_mask(source_map, fusion.mask_words, fusion.threshold, map_size, size)


def reduced(shares: Tensor, size: Size) -> Tensor:
    """(F, H, W) in [0, 1] -> (F, h, w) bool: where more than half as much of a cell is edited as of the frame's fullest
    one.

    Mostly that is half of the cell; but at deep levels no cell is full of a small object, which must not vanish there
    (eq. 6 likewise).
    """
    area = F.interpolate(shares[:, None].float(), size=size, mode="area")[:, 0]
    return area > 0.5 * area.amax((1, 2), keepdim=True)


def foreground(fusion: Fusion, maps: Mapping[int, Tensor], latent_size: Size) -> Tensor | None:
    """What `--keep-background` lets change, (F, h, w) at the latent's size, one mask for all steps; None without that
    setting.

    maps: the source's averaged cross-attention of every step. Of words it is eq. 6 of the mean map: single steps
    flicker.
    """
    if fusion.background is None:
        return None
    steady = dataclasses.replace(fusion, mask_words=fusion.background)
    return edit_mask(steady, torch.stack(list(maps.values())).mean(0), latent_size, latent_size)


def paste_background(frames: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Outside the mask, grown by one of its cells and with an edge as wide, the source's pixels, to the bit.

    frames, source: (F, 3, H, W) in [-1, 1]; mask: (F, h, w) bool, True = the edit's. Inside the mask the edit's pixels
    stay as they are.
    """
    cell = max(1, frames.shape[-1] // mask.shape[-1])
    grown = F.interpolate(mask[:, None].float(), size=frames.shape[-2:])
    grown = F.max_pool2d(grown, 2 * cell + 1, stride=1, padding=cell)
    # padding that does not count, so that a mask at the border has no edge there
    alpha = F.avg_pool2d(grown, 2 * cell + 1, stride=1, padding=cell, count_include_pad=False).to(frames.device)
    source = source.to(frames)
    mixed = torch.where(alpha > 0, alpha * frames + (1 - alpha) * source, source)
    return torch.where(alpha > 1 - 1e-4, frames, mixed)
