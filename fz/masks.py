"""Where an edit may change a clip: the mask of one step at any size, the steady one that keeps the background, a user's
mask from files.

M is the user's mask if there is one, else eq. 6 (`blend_mask`). Masks are (F, h, w) bool, True = edited; a user's is
kept as shares (F, H, W) in [0, 1] of the clip's own pixels and reduced by areas to each size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fz.attention import FUSED_FROM_STRIDE, MAP_STRIDE
from fz.model.layers import Site

Size = tuple[int, int]


@dataclass(frozen=True)
class LatentBlend:
    """Outside the union of the source's and the target's word masks the latent is the source's. Weights (L,) over each
    prompt's tokens.
    """

    source_words: Tensor
    target_words: Tensor
    threshold: float = 0.3

    def active(self, steps_done: int, steps: int) -> bool:
        """After `steps_done` of `steps` edit steps: 0.2 T < k < 0.8 T, in integers."""
        return steps < 5 * steps_done < 4 * steps


@dataclass(frozen=True)
class EditRegion:
    """Where one edit may change the clip; by default everywhere. L = 77 token columns.

    mask_words:    (L,), 1 at the source's edited words; None: no mask, every row of a fused map is the source's.
    threshold:     tau of eq. 6.
    user_mask:     (F, H, W), shares in [0, 1] of the clip's pixels that are edited, in place of the words' masks.
    hides_object:  removal: no pixel attends to keys under the mask, so that it is filled from what is around it.
    background:    (L,), 1 at words outside whose steady mask every latent is the source's (`foreground`).
    latent_blend:  the words and threshold of the background's latents.
    """

    mask_words: Tensor | None = None
    threshold: float = 0.3
    user_mask: Tensor | None = None
    hides_object: bool = False
    background: Tensor | None = None
    latent_blend: LatentBlend | None = None

    @property
    def has_mask(self) -> bool:
        """Is there a mask M of each step?"""
        return self.mask_words is not None or self.user_mask is not None

    def blends_latents_after(self, steps_done: int, steps: int) -> bool:
        """Are the background's latents the source's after that edit step?"""
        return self.latent_blend is not None and self.latent_blend.active(steps_done, steps)

    def on(self, device: torch.device) -> "EditRegion":
        """The same with its tensors on a device, where they then need no copy a step."""

        def there(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        blend = self.latent_blend
        return dataclasses.replace(
            self,
            mask_words=there(self.mask_words),
            user_mask=there(self.user_mask),
            background=there(self.background),
            latent_blend=blend and LatentBlend(there(blend.source_words), there(blend.target_words), blend.threshold),
        )


EVERYWHERE = EditRegion()


def blend_mask(cross_map: Tensor, words: Tensor, threshold: float, map_size: Size, size: Size) -> Tensor:
    """M of eq. 6: where the edited words' cross-attention exceeds tau.

    cross_map: (F, N, L) averaged over heads and layers, N = map_size tokens; words: (L,) weights, 1 at edited tokens.
    Returns (F, H, W) bool of `size`: summed over words, 3x3 max-pooled, resized (nearest), divided by each frame's
    maximum, > tau.
    """
    m = (cross_map.float() @ words.to(cross_map.device)).unflatten(1, map_size)[:, None]  # (F, 1, h, w)
    m = F.interpolate(F.max_pool2d(m, 3, stride=1, padding=1), size=size)
    return (m / m.amax(dim=(-2, -1), keepdim=True) > threshold)[:, 0]


def edit_mask(region: EditRegion, source_map: Tensor, latent_size: Size, size: Size) -> Tensor | None:
    """M of one step at `size`; None where the region has neither a user's mask nor mask words."""
    if region.user_mask is not None:
        return reduced(region.user_mask, size).to(source_map.device)
    if region.mask_words is None:
        return None
    map_size = (latent_size[0] // MAP_STRIDE, latent_size[1] // MAP_STRIDE)
    return blend_mask(source_map, region.mask_words, region.threshold, map_size, size)


def self_masks(
    region: EditRegion,
    sites: Sequence[Site],
    source_map: Tensor,
    latent_size: Size,
    least_stride: int = FUSED_FROM_STRIDE,
) -> dict[int, Tensor] | None:
    """M of one step at every self-attention that uses it, stride -> (F, h, w) bool; None where the region has no
    mask. least_stride: of what is fused.
    """
    if not region.has_mask:
        return None
    # keys are hidden at the full-size level too
    least = 1 if region.hides_object else least_stride
    strides = sorted({s.stride for s in sites if s.kind == "self" and s.stride >= least})
    height, width = latent_size
    return {s: edit_mask(region, source_map, latent_size, (height // s, width // s)) for s in strides}


def surroundings(mask: Tensor) -> Tensor:
    """The keys that removal leaves to be seen, (F, N) bool: those outside the mask, or a frame's all where it covers
    everything.
    """
    return ~mask | mask.all(1, keepdim=True)


def blend_latents(z: Tensor, background: Tensor, region: EditRegion, source_map: Tensor, target_map: Tensor) -> Tensor:
    """Outside the source's and the target's word masks, or the user's, the inverted latent of the same noise level."""
    blend, size = region.latent_blend, tuple(z.shape[-2:])
    if region.user_mask is not None:
        return torch.where(reduced(region.user_mask, size).to(z.device)[:, None], z, background)
    map_size = (size[0] // MAP_STRIDE, size[1] // MAP_STRIDE)
    edited = blend_mask(source_map, blend.source_words, blend.threshold, map_size, size)
    edited |= blend_mask(target_map, blend.target_words, blend.threshold, map_size, size)
    return torch.where(edited[:, None], z, background)


def reduced(shares: Tensor, size: Size) -> Tensor:
    """(F, H, W) in [0, 1] -> (F, h, w) bool: where more than half as much of a cell is edited as of the frame's fullest
    one.

    Mostly that is half of the cell; but at deep levels no cell is full of a small object, which must not vanish there
    (eq. 6 likewise).
    """
    area = F.interpolate(shares[:, None].float(), size=size, mode="area")[:, 0]
    return area > 0.5 * area.amax((1, 2), keepdim=True)


def foreground(region: EditRegion, maps: Mapping[int, Tensor], latent_size: Size) -> Tensor | None:
    """What `--keep-background` lets change, (F, h, w) at the latent's size, one mask for all steps; None without that
    setting.

    maps: the source's averaged cross-attention of every step. Of words it is eq. 6 of the mean map: single steps
    flicker.
    """
    if region.background is None:
        return None
    steady = dataclasses.replace(region, mask_words=region.background)
    return edit_mask(steady, torch.stack(list(maps.values())).mean(0), latent_size, latent_size)


def changed_pixels(region: EditRegion, maps: Mapping[int, Tensor], latent_size: Size) -> Tensor | None:
    """The mask of `paste_background`: a user's as it was drawn, (F, H, W) of the clip's pixels, else `foreground`."""
    if region.background is not None and region.user_mask is not None:
        return region.user_mask > 0.5
    return foreground(region, maps, latent_size)


def with_edge(mask: Tensor, size: Size) -> Tensor:
    """A mask (F, h, w), grown by one of its cells and with an edge as wide, as shares (F, 1, H, W) in [0, 1] of
    `size`.
    """
    cell = max(1, size[1] // mask.shape[-1])
    grown = F.interpolate(mask[:, None].float(), size=size)
    grown = F.max_pool2d(grown, 2 * cell + 1, stride=1, padding=cell)
    # padding that does not count, so that a mask at the border has no edge there
    return F.avg_pool2d(grown, 2 * cell + 1, stride=1, padding=cell, count_include_pad=False)


def paste_background(frames: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Outside the mask and its edge (`with_edge`) the source's pixels, to the bit.

    frames, source: (F, 3, H, W) in [-1, 1]; mask: (F, h, w) bool, True = the edit's. Inside the mask the edit's pixels
    stay as they are. A mask of every pixel, (F, H, W), is not grown and has no edge.
    """
    if mask.shape[-2:] == frames.shape[-2:]:
        return torch.where(mask[:, None].to(frames.device), frames, source.to(frames))
    alpha = with_edge(mask, tuple(frames.shape[-2:])).to(frames.device)
    source = source.to(frames)
    mixed = torch.where(alpha > 0, alpha * frames + (1 - alpha) * source, source)
    return torch.where(alpha > 1 - 1e-4, frames, mixed)
