"""Algorithm 2: the attention of one timestep, fused with what the source's attention was at the same timestep.

No map is built: a fused map is linear in the source's and the edit's maps, so fusing is choosing other operands for a
plain attention. Where the masks come from is `masks.py`; where the source's queries and keys are kept is `source.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fz import kernels
from fz.attention import FUSED_FROM_STRIDE, MAP_STRIDE, QK, Keep, Plain
from fz.frames import FrameIndex, frame_table
from fz.masks import surroundings
from fz.model.layers import Operands, Site, TextContext


@dataclass(frozen=True)
class Fusion:
    """The constants of Algorithm 2 for one edit. L = 77 token columns.

    mapper:        A (L, L), sends source columns to target columns (replacement: the paper's mapper; refinement: a
                   gather).
    alpha:         (L,), 1 where a target column takes the source's attention, 0 for new words (1 everywhere for
                   replacement).
    equalizer:     r (L,), re-weighting, acting while a column is replaced.
    cross_window:  beta (T + 1, L), 1 at edit step k while column j is in its replace window (t > t_c).
    self_window:   edit steps [from, to) at which self-attention is fused (t > t_s).
    least_stride:  of the feature maps whose attention is fused, 1 being the latent's own size.
    """

    mapper: Tensor
    alpha: Tensor
    equalizer: Tensor
    cross_window: Tensor
    self_window: tuple[int, int]
    least_stride: int = FUSED_FROM_STRIDE

    def replaces_cross(self, k: int) -> bool:
        """Is any column's cross-attention fused at edit step k?"""
        return bool(self.cross_window[k].any())

    def replaces_self(self, k: int) -> bool:
        """Is self-attention fused at edit step k?"""
        return self.self_window[0] <= k < self.self_window[1]

    def keeps(self, k: int) -> Keep:
        """The source's queries and keys that edit step k needs."""
        return Keep(self.replaces_self(k), self.replaces_cross(k), least_stride=self.least_stride)

    def at(self, k: int) -> "FusionStep":
        """What is fused at edit step k, made once for all layers.

        Column j of the fused map is sum_i c_src[:, i] source_weights[i, j] + c_edit[:, j] edit_weights[j].
        """
        beta = self.cross_window[k]
        source_weights = self.mapper * (self.equalizer * beta)
        edit_weights = (1 - self.alpha) * self.equalizer * beta + (1 - beta)
        return FusionStep(
            self.replaces_self(k), self.replaces_cross(k), source_weights, edit_weights, self.least_stride
        )


@dataclass(frozen=True)
class FusionStep:
    """A Fusion at one edit step: whether self- and cross-attention are fused, and the columns' weights, (L, L) and
    (L,); least_stride: as a Fusion's.
    """

    fuses_self: bool
    fuses_cross: bool
    source_weights: Tensor
    edit_weights: Tensor
    least_stride: int = FUSED_FROM_STRIDE
    _placed: dict = field(default_factory=dict, repr=False, compare=False)

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """source_weights and edit_weights in the dtype and on the device of a tensor, copied there once."""
        key = (like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = self.source_weights.to(like), self.edit_weights.to(like)
        return self._placed[key]

    def of_weights(self, source_weights: Tensor, edit_weights: Tensor) -> "FusionStep":
        """The same of `weights` that lie elsewhere, where they may come to be others that fuse alike."""
        placed = {"edits": self.edits_cross}
        return replace(self, source_weights=source_weights, edit_weights=edit_weights, _placed=placed)

    @property
    def edits_cross(self) -> bool:
        """Has any column of the fused map a part of the edit's own?"""
        if "edits" not in self._placed:
            self._placed["edits"] = bool(self.edit_weights.any())
        return self._placed["edits"]


@dataclass
class Fuser:
    """Algorithm 2 at one edit step: the last branch's attention fused with the source's at the same t; other branches
    plain.

    qk: the source's queries and keys at this t by site name, as a Recorder keeps them; source_text: the source prompt,
    whose keys are those of the cross-attention. masks: stride of a site -> (F, h, w) bool, or None for no mask.
    hides_object: no query of any branch attends to a key under the mask. record_target: keep the target's 1/4-level
    cross-attention.
    """

    frame_index: FrameIndex
    fusion: FusionStep
    qk: QK
    source_text: TextContext
    masks: Mapping[int, Tensor] | None = None
    hides_object: bool = False
    record_target: bool = False
    target_maps: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __call__(self, site: Site, x: Operands) -> Tensor:
        if not site.fusible:
            return Plain(self.frame_index)(site, x)
        if site.kind == "cross":
            return self.cross_fusion(site, x)
        return self.self_blending(site, x)

    def fresh(self) -> "Fuser":
        """The same before its forward pass: nothing recorded yet."""
        return replace(self)

    def self_blending(self, site: Site, x: Operands) -> Tensor:
        """s_fused = M ⊙ s_edit + (1 - M) ⊙ s_src (eq. 7), one softmax a row: its operands are the edit's or the
        source's.
        """
        table = frame_table(self.frame_index, site, x)
        mask = self.mask_at(site)
        visible = surroundings(mask).expand(x.shape[0], -1, -1) if mask is not None and self.hides_object else None
        if site.stride < self.fusion.least_stride or not self.fusion.fuses_self:
            return kernels.self_attention(x.q(), x.k(), x.v(), table, key_mask=visible)
        # without a mask no row is the edit's: the last branch's queries and keys are not even computed
        branches = slice(None, -1) if mask is None else slice(None)
        q, k = x.q(branches), x.k(branches)
        q_src, k_src = self.qk[site.name]
        return kernels.self_attention(q, k, x.v(), table, q_src=q_src, k_src=k_src, mask=mask, key_mask=visible)

    def mask_at(self, site: Site) -> Tensor | None:
        """(F, N) bool, or None without masks and where nothing is fused, which has one for removal only."""
        if self.masks is None or (site.stride < self.fusion.least_stride and not self.hides_object):
            return None
        return self.masks[site.stride].flatten(1)

    def cross_fusion(self, site: Site, x: Operands) -> Tensor:
        """Columns that stay take c_src, changed ones c_edit: two attentions over 77 keys whose values are mixed
        beforehand.
        """
        wants_map = self.record_target and site.stride == MAP_STRIDE
        if site.stride < self.fusion.least_stride or not self.fusion.fuses_cross:
            out, maps = kernels.cross_attention(x.q(), x.k(), x.v(), map_branch=-1 if wants_map else None)
        else:
            k, v, edits = x.k(), x.v(), self.fusion.edits_cross
            source_weights, edit_weights = self.fusion.weights(v)
            out, maps = kernels.cross_attention(
                # where the edit's part is nothing, its queries are not even computed
                x.q(slice(None) if edits else slice(None, -1)),
                k,
                torch.cat([v[:-1], v[-1:] * edit_weights[None, :, None, None]]),
                q_src=self.qk[site.name][0],
                k_src=x.keys_of(self.source_text)[0],
                v_src=torch.einsum("ij,jhd->ihd", source_weights, v[-1]),
                map_branch=-1 if wants_map and edits else None,
            )
        if maps is not None:
            self.target_maps[site.name] = maps
        return out

    def fused_target_map(self, source_map: Tensor) -> Tensor:
        """The target's fused cross-attention of this step, averaged over heads and layers, (F, N, L): linear in both
        maps.
        """
        recorded = [m.float() for m in self.target_maps.values()]
        edit = torch.stack(recorded).mean(0) if recorded else torch.zeros_like(source_map)
        if not self.fusion.fuses_cross:
            return edit
        source_weights, edit_weights = self.fusion.weights(source_map)
        return source_map @ source_weights + edit * edit_weights
