"""Attention on a CPU by oneDNN's products, one head and one tile of rows at a time; no map, no gradients.

`scaled_dot_product_attention` multiplies by MKL, which runs at less than half of oneDNN's speed on CPUs that are not
Intel's. Keys and values are copied from where the anchors lie straight into the order that the products read; those of
bfloat16 as float32, as its logits would have too few digits. Where it pays is `fz.kernels.gemm`'s to say.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fz.kernels.gemm import prefers_onednn, vector_bits

# logits of a tile for each thread: 1 MB, about a core's second-level cache
TILE = 2**18
# multiply-adds of one head below which calling a product costs more than it saves
LEAST = 2**21
# keys up to which tiles pay on any CPU; with more, only where vectors are wide: elsewhere PyTorch's fused kernel
# multiplies as fast, and never writes the logits (bench/LOG.md)
FEW_KEYS = 128
# oneDNN compiles a product for every shape: tiles have a multiple of so many rows
ROWS = 16


class Laid:
    """Keys or values (B, F, N, Nh, D) whose anchors are copied head-major as they are asked for.

    A copy stays for the frames that follow: an anchor that keeps its place among a frame's is not copied again.
    """

    def __init__(self, x: Tensor, scale: float = 1.0):
        self.x, self.scale = x, scale
        self._buffers: dict[tuple[int, int], tuple[Tensor, list[int | None]]] = {}

    def of(self, b: int, anchors: Sequence[int]) -> Tensor:
        """scale times the anchors of a branch, side by side: (Nh, R·N, D), until the next call."""
        _, _, tokens, heads, d = self.x.shape
        key = (b, len(anchors))
        if key not in self._buffers:
            self._buffers[key] = torch.empty(heads, len(anchors) * tokens, d), [None] * len(anchors)
        out, held = self._buffers[key]
        for i, anchor in enumerate(anchors):
            if held[i] != anchor:
                place = out[:, i * tokens : (i + 1) * tokens]
                if self.x.dtype == out.dtype:
                    torch.mul(self.x[b, anchor].transpose(0, 1), self.scale, out=place)
                else:  # scaled as float32, not rounded once more
                    place.copy_(self.x[b, anchor].transpose(0, 1)).mul_(self.scale)
                held[i] = anchor
        return out

    def beside(self, anchors: Sequence[int]) -> Tensor:
        """The anchors of all branches as they are, side by side: (B, R·N, Nh, D); of neighbours a view."""
        first, count = anchors[0], len(anchors)
        if list(anchors) == list(range(first, first + count)):
            return self.x[:, first : first + count].flatten(1, 2)
        # a buffer that is written again would spoil what a backward pass has kept, of the keys for the queries, too
        if torch.is_grad_enabled():
            return torch.cat([self.x[:, a] for a in anchors], dim=1)
        branches = len(self.x)
        if (-1, count) not in self._buffers:
            self._buffers[-1, count] = self.x.new_empty(branches, count, *self.x.shape[2:]), [None] * count
        out, held = self._buffers[-1, count]
        for i, anchor in enumerate(anchors):
            if held[i] != anchor:
                out[:, i] = self.x[:, anchor]
                held[i] = anchor
        return out.flatten(1, 2)


def serves(q: Tensor, k: Tensor, v: Tensor, anchors: Sequence[int], rows: int) -> bool:
    """Does `attend` take these operands and pay for so many rows? q: (B, Nq, Nh, D); k, v: (B, F, N, Nh, D)."""
    keys = len(anchors) * k.shape[2]
    if rows * keys * q.shape[3] < LEAST or (keys > FEW_KEYS and vector_bits() < 512):
        return False
    if not all(x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) for x in (q, k, v)):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return False
    return prefers_onednn()


def attend(q: Tensor, k: Laid, v: Laid, anchors: Sequence[int], out: Tensor, index: Tensor | None = None) -> None:
    """out = softmax(q kᵀ) v over the anchors' keys, q and out (B, Nq, Nh, D); k's scale is 1/√D.

    index: the rows to do, None for all. Rows are gathered and scattered a tile and a head at a time, while they are in
    the cache.
    """
    for b in range(len(q)):
        keys, values = k.of(b, anchors), v.of(b, anchors)
        for rows in tiles(q.shape[1] if index is None else len(index), keys.shape[1], q[b].numel()):
            chosen = None if index is None else index[rows]
            for head in range(q.shape[2]):
                queries = q[b, rows, head] if chosen is None else q[b, :, head].index_select(0, chosen)
                p = product(queries.float(), keys[head])
                result = product(torch.softmax(p, -1, out=p), values[head].t())
                if chosen is None:
                    out[b, rows, head] = result
                else:
                    out[b, :, head].index_copy_(0, chosen, result.to(out.dtype))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ; the weight or its transpose must be contiguous, as oneDNN has no fast product otherwise."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def tiles(rows: int, keys: int, most: int) -> Iterator[slice]:
    """Rows cut into tiles whose logits fit `TILE` a thread, and `most` numbers; the last begins early."""
    height = max(ROWS, min(TILE * torch.get_num_threads(), most) // keys // ROWS * ROWS)
    for start in range(0, rows, height):
        end = min(start + height, rows)
        yield slice(max(0, end - -(-(end - start) // ROWS) * ROWS), end)
