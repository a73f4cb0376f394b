"""Algorithm 2: the attention of one timestep, plain, recorded or fused.

Each is a function `attend(site, operands)` that the UNet's attention layers call. No map is built where it would be
multiplied by V: a fused map is linear in the source's and the edit's maps, so fusing is choosing other operands
(`Fuser`). A map is built once only, averaged over heads, at the 1/4 level, from which masks and pictures are made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fz import kernels
from fz.frames import FrameIndex, frame_table
from fz.model.layers import Operands, Site, TextContext

MAP_STRIDE = 4  # masks come from the cross-attention whose feature map is 1/4 of the latent's side
FUSED_FROM_STRIDE = 2  # the full-size level is never fused


@dataclass(frozen=True)
class Plain:
    """Attention as the inflated model has it, nothing kept and nothing fused."""

    frame_index: FrameIndex

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.kind == "cross":
            return kernels.cross_attention(x.q(), x.k(), x.v())[0]
        return kernels.self_attention(x.q(), x.k(), x.v(), frame_table(self.frame_index, site, x))


@dataclass(frozen=True)
class Keep:
    """Of which sites a Recorder keeps queries and keys at one timestep, and in which dtype. Nothing, by default."""

    self_sites: bool = False
    cross_sites: bool = False
    dtype: torch.dtype | None = None

    def wants(self, site: Site) -> bool:
        return site.stride >= FUSED_FROM_STRIDE and (self.self_sites if site.kind == "self" else self.cross_sites)

    def __or__(self, other: "Keep") -> "Keep":
        """What either keeps."""
        return Keep(
            self.self_sites or other.self_sites, self.cross_sites or other.cross_sites, self.dtype or other.dtype
        )


class Enough(Exception):
    """A Recorder has what it was asked for: the rest of the forward pass is not needed."""


@dataclass
class Recorder:
    """Plain attention of one timestep that keeps what fusion will need of one branch: c_src of Algorithm 1, and Q and K
    if asked.

    maps: the branch's cross-attention at each 1/4-level site, averaged over heads, (F, N, 77). kept: site name -> (q,
    k) or (q,). last: the name of a site after which the pass is broken off by raising Enough, or None.
    """

    frame_index: FrameIndex
    branch: int = 0
    keep: Keep = Keep()
    last: str | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.name in self.maps or site.name in self.kept:
            raise RuntimeError(f"{site.name} was recorded twice in one forward pass")
        q, k = x.q(), x.k()
        if self.keep.wants(site):
            # the keys of a cross-attention are the prompt's, the same at every step
            operands = (q, k[:, x.own]) if site.kind == "self" else (q,)
            self.kept[site.name] = tuple(o[self.branch].to(self.keep.dtype or o.dtype, copy=True) for o in operands)
        if site.name == self.last:
            raise Enough
        if site.kind == "self":
            return kernels.self_attention(q, k, x.v(), frame_table(self.frame_index, site, x))
        if site.stride != MAP_STRIDE:
            return kernels.cross_attention(q, k, x.v())[0]
        out, self.maps[site.name] = kernels.cross_attention(q, k, x.v(), map_branch=self.branch)
        return out

    def average(self) -> Tensor:
        """The cross-attention averaged over heads and 1/4-level layers, (F, N, 77), float32; N = h/4 · w/4 tokens."""
        return torch.stack([m.float() for m in self.maps.values()]).mean(0)


@dataclass(frozen=True)
class Fusion:
    """What one edit fuses, as numbers: the constants of Algorithm 2. L = 77 token columns.

    mapper:        A (L, L), sends source columns to target columns (replacement: the paper's mapper; refinement: a
    gather). kept:          α (L,), 1 where a target column takes the source's attention, 0 for new words (1 everywhere
    for replacement). equalizer:     r (L,), re-weighting, acting while a column is replaced.
    cross_window:  β (T + 1, L), 1 at edit step k while column j is in its replace window (t > t_c).
    self_window:   edit steps [from, to) at which self-attention is fused (t > t_s).
    mask_words:    (L,), 1 at the source's edited words; None: no mask, every row of the map is the source's.
    threshold:     τ of eq. 6.
    latent_blend:  None, or the words and threshold of the background's latents.
    user_mask:     (F, H, W), shares in [0, 1] of the clip's pixels that are edited, in place of the words' masks; None:
    theirs. hides_object:  removal: keys under the mask are attended to by nobody, so that it is filled from what is
    around it. background:    (L,), 1 at words outside whose steady mask every latent is the source's
    (`fz.masks.foreground`); None: none is.
    """

    mapper: Tensor
    kept: Tensor
    equalizer: Tensor
    cross_window: Tensor
    self_window: tuple[int, int]
    mask_words: Tensor | None = None
    threshold: float = 0.3
    latent_blend: "LatentBlend | None" = None
    user_mask: Tensor | None = None
    hides_object: bool = False
    background: Tensor | None = None

    def replaces_cross(self, k: int) -> bool:
        """Is any column's cross-attention fused at edit step k?"""
        return bool(self.cross_window[k].any())

    def replaces_self(self, k: int) -> bool:
        """Is self-attention fused at edit step k?"""
        return self.self_window[0] <= k < self.self_window[1]

    def keeps(self, k: int) -> Keep:
        """The source's queries and keys that edit step k needs."""
        return Keep(self.replaces_self(k), self.replaces_cross(k))

    def source_weights(self, k: int) -> Tensor:
        """(L, L): column j of the fused map takes Σ_i c_src[:, i] · weights[i, j]."""
        return self.mapper * (self.equalizer * self.cross_window[k])

    def edit_weights(self, k: int) -> Tensor:
        """(L,): column j of the fused map takes c_edit[:, j] · weights[j]."""
        beta = self.cross_window[k]
        return (1 - self.kept) * self.equalizer * beta + (1 - beta)


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


def blend_mask(
    cross_map: Tensor, words: Tensor, threshold: float, map_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """M of eq. 6: where the edited words' cross-attention exceeds τ.

    cross_map: (F, N, L) averaged over heads and layers, N = map_size tokens; words: (L,) weights, 1 at edited tokens.
    Returns (F, H, W) bool of `size`: summed over words, 3x3 max-pooled, resized (nearest), divided by each frame's
    maximum, > τ.
    """
    m = (cross_map.float() @ words.to(cross_map.device)).unflatten(1, map_size)[:, None]  # (F, 1, h, w)
    m = F.interpolate(F.max_pool2d(m, 3, stride=1, padding=1), size=size)
    return (m / m.amax(dim=(-2, -1), keepdim=True) > threshold)[:, 0]


def surroundings(mask: Tensor) -> Tensor:
    """The keys that removal leaves to be seen, (F, N) bool: those outside the mask, or a frame's all where it covers
    everything.
    """
    return ~mask | mask.all(1, keepdim=True)


@dataclass
class Fuser:
    """Algorithm 2 at edit step k: the last branch's attention fused with the source's at the same t; other branches
    plain.

    kept: the source's queries and keys at this t by site name, as a Recorder kept them; source_text: the source prompt,
    whose keys are those of the cross-attention. masks: (h, w) of a site -> (F, h, w) bool, or None for no mask.
    record_target: keep the target's 1/4-level cross-attention.
    """

    frame_index: FrameIndex
    fusion: Fusion
    k: int
    latent_size: tuple[int, int]
    masks: Mapping[tuple[int, int], Tensor] | None
    kept: Mapping[str, tuple[Tensor, ...]]
    source_text: TextContext
    record_target: bool = False
    target_maps: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if site.kind == "cross":
            return self.cross_fusion(site, x)
        return self.self_blending(site, x)

    def self_blending(self, site: Site, x: Operands) -> Tensor:
        """s_fused = M ⊙ s_edit + (1 - M) ⊙ s_src (eq. 7), one softmax a row: its operands are the edit's or the
        source's.
        """
        table = frame_table(self.frame_index, site, x)
        mask = self.mask_at(site)
        visible = (
            None if mask is None or not self.fusion.hides_object else surroundings(mask).expand(x.shape[0], -1, -1)
        )
        if site.stride < FUSED_FROM_STRIDE or not self.fusion.replaces_self(self.k):
            return kernels.self_attention(x.q(), x.k(), x.v(), table, key_mask=visible)
        # without a mask no row is the edit's: the last branch's queries and keys are not even computed
        branches = slice(None, -1) if mask is None else slice(None)
        q, k = x.q(branches), x.k(branches)
        q_src, k_src = self.kept[site.name]
        return kernels.self_attention(q, k, x.v(), table, q_src=q_src, k_src=k_src, mask=mask, key_mask=visible)

    def mask_at(self, site: Site) -> Tensor | None:
        """(F, N) bool, or None without masks and at the full-size level, which has one for removal only."""
        if self.masks is None or (site.stride < FUSED_FROM_STRIDE and not self.fusion.hides_object):
            return None
        return self.masks[self.latent_size[0] // site.stride, self.latent_size[1] // site.stride].flatten(1)

    def cross_fusion(self, site: Site, x: Operands) -> Tensor:
        """Columns that stay take c_src, changed ones c_edit: two attentions over 77 keys whose values are mixed
        beforehand.
        """
        wants_map = self.record_target and site.stride == MAP_STRIDE
        fused = site.stride >= FUSED_FROM_STRIDE and self.fusion.replaces_cross(self.k)
        if not fused:
            out, maps = kernels.cross_attention(x.q(), x.k(), x.v(), map_branch=-1 if wants_map else None)
        else:
            k, v = x.k(), x.v()
            source_weights = self.fusion.source_weights(self.k).to(v)
            edit_weights = self.fusion.edit_weights(self.k).to(v)
            v_src = torch.einsum("ij,jhd->ihd", source_weights, v[-1])
            v_edit = torch.cat([v[:-1], v[-1:] * edit_weights[None, :, None, None]])
            # where the edit's part is nothing, its queries are not even computed
            q = x.q(slice(None) if edit_weights.any() else slice(None, -1))
            k_src = self.source_text.project(f"{site.name}.to_k", x.layer.to_k)[0].unflatten(-1, (x.layer.heads, -1))
            wants_map = wants_map and bool(edit_weights.any())
            out, maps = kernels.cross_attention(
                q,
                k,
                v_edit,
                q_src=self.kept[site.name][0],
                k_src=k_src,
                v_src=v_src,
                map_branch=-1 if wants_map else None,
            )
        if maps is not None:
            self.target_maps[site.name] = maps
        return out

    def fused_target_map(self, source_map: Tensor) -> Tensor:
        """The target's fused cross-attention of this step, averaged over heads and layers, (F, N, L): linear in both
        maps.
        """
        fused = self.fusion.replaces_cross(self.k)
        recorded = [m.float() for m in self.target_maps.values()]
        edit = torch.stack(recorded).mean(0) if recorded else torch.zeros_like(source_map)
        if not fused:
            return edit
        return source_map @ self.fusion.source_weights(self.k).to(source_map) + edit * self.fusion.edit_weights(
            self.k
        ).to(edit)
