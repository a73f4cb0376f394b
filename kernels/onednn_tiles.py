"""Attention of float32 on a CPU by oneDNN's products, one head and one tile of rows at a time; no map, no gradients.

`scaled_dot_product_attention` multiplies by MKL, which runs at less than half of oneDNN's speed on CPUs that are not Intel's. Keys and
values are copied once, from where the anchors lie straight into the order that the products read. Whether it pays is measured (`fz.gemm`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fz.gemm import prefers_onednn

# logits of a tile for each thread: 1 MB, about a core's second-level cache
TILE = 2**18
# multiply-adds of one head below which calling a product costs more than it saves
LEAST = 2**21
# oneDNN compiles a product for every shape: tiles have a multiple of so many rows
ROWS = 16


def serves(q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor]) -> bool:
    """Whether `attend` takes these operands and is the faster way here. q: (B, Nq, Nh, D); k, v: anchors side by side, (B, N, Nh, D)."""
    keys = sum(x.shape[1] for x in k)
    if q.shape[1] * keys * q.shape[3] < LEAST or not all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (q, *k, *v)):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, *k, *v)):
        return False
    return prefers_onednn()


def attend(q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """softmax(q kᵀ / √D) v: q (B, Nq, Nh, D), anchors' k and v (B, N, Nh, D) -> (B, Nq, Nh, D)."""
    out = torch.empty(q.shape)
    for b in range(len(q)):
        keys, values = lay([x[b] for x in k], q.shape[-1] ** -0.5), lay([x[b] for x in v])
        for rows in tiles(q.shape[1], keys.shape[1], q[b].numel()):
            for head in range(q.shape[2]):
                p = product(q[b, rows, head], keys[head])
                out[b, rows, head] = product(torch.softmax(p, -1, out=p), values[head].t())
    return out


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ; the weight or its transpose must be contiguous, as oneDNN has no fast product otherwise."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def lay(anchors: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """(N, Nh, D) of each anchor -> scale times all of them, head-major, (Nh, R·N, D)."""
    tokens, heads, d = anchors[0].shape
    out = torch.empty(heads, len(anchors) * tokens, d)
    for i, x in enumerate(anchors):
        torch.mul(x.transpose(0, 1), scale, out=out[:, i * tokens : (i + 1) * tokens])
    return out


def tiles(rows: int, keys: int, most: int) -> Iterator[slice]:
    """Rows cut into tiles whose logits fit `TILE` a thread, and `most` numbers; the last begins early rather than have an odd height."""
    height = max(ROWS, min(TILE * torch.get_num_threads(), most) // keys // ROWS * ROWS)
    for start in range(0, rows, height):
        end = min(start + height, rows)
        yield slice(max(0, end - -(-(end - start) // ROWS) * ROWS), end)
