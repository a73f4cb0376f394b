"""What the attention kernels are told about rows and frames: the order of a mask's rows, each frame's anchors once.

Both come from small tensors by many small operations. So each is made once: of a mask as long as that lives and is not
written to, of a table that lies on the CPU for as long as the process runs, since CUDA graphs go on reading it. A
caller that passes the same again launches and copies nothing.
"""

import functools
import weakref

import torch
from torch import Tensor

Made = tuple[Tensor, ...]
# (mask or what it is a view of, place in it) -> what is kept of it
_packed: dict[tuple, tuple[weakref.ref, int, Made]] = {}


def rows_of(mask: Tensor | None, frames: int, tokens: int, device: torch.device) -> Made:
    """`pack_rows` of a mask, made once; None: no row is edited."""
    if mask is None:
        return _unedited(frames, tokens, device)
    # tensors of inference mode have no version to compare
    if mask.is_inference():
        return pack_rows(mask)
    whole = mask if mask._base is None else mask._base
    key = (id(whole), mask.storage_offset(), mask.shape, mask.stride())
    kept = _packed.get(key)
    if kept is None or kept[0]() is not whole or kept[1] != whole._version:
        kept = _packed[key] = (weakref.ref(whole, lambda _: _packed.pop(key, None)), whole._version, pack_rows(mask))
    return kept[2]


def pack_rows(mask: Tensor) -> Made:
    """Rows of each frame, edited ones first, and how many are: (F, N) bool -> (F, N), (F,) int32, on its device."""
    return (~mask).to(torch.uint8).sort(dim=1, stable=True).indices.int(), mask.sum(1, dtype=torch.int32)


@functools.cache
def _unedited(frames: int, tokens: int, device: torch.device) -> Made:
    rows = torch.arange(tokens, dtype=torch.int32, device=device)
    return rows.expand(frames, tokens).contiguous(), torch.zeros(frames, dtype=torch.int32, device=device)


def anchors_of(frames: Tensor, device: torch.device) -> Made:
    """`merge_anchors` on the device; of a table on the CPU made once for its numbers."""
    if frames.device.type != "cpu":
        return merge_anchors(frames)
    return _merged(tuple(map(tuple, frames.tolist())), device)


@functools.cache
def _merged(table: tuple[tuple[int, ...], ...], device: torch.device) -> Made:
    return tuple(x.to(device) for x in merge_anchors(torch.tensor(table)))


def merge_anchors(frames: Tensor) -> Made:
    """Each frame's anchors once: (F, R) -> anchors (F, R) int32, log2 of their multiplicity, how many (F,)."""
    same = frames[:, :, None] == frames[:, None, :]
    first = ~torch.tril(same, -1).any(-1)
    order = (~first).to(torch.uint8).sort(dim=1, stable=True).indices
    return frames.gather(1, order).int(), same.sum(-1).float().log2().gather(1, order), first.sum(1, dtype=torch.int32)
