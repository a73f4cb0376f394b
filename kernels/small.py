"""Self-attention of a miniature's narrow heads in one call for all frames and branches.

`torch_ops` calls once for each frame. Here keys of every frame's anchors are laid side by side, which is nothing for a
miniature. Rows of a masked branch are computed both ways: at this size a second call costs more than they do. Stable
Diffusion's heads (40 and wider) never come here: `torch_ops` is up to 3 times as fast with them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# numbers in all keys laid side by side: 16 MB of float32
MOST = 2**22
# heads this wide are worth a call of their own
WIDE_D = 32
# narrower heads are padded with zeros to this: CPU kernels take vectors of 16
LEAST_D = 16


def serves(v: Tensor, frames: Tensor, key_mask: Tensor | None) -> bool:
    """Whether `self_attention` takes these operands. Frames that all read the same keys need no copies of them."""
    few = v.shape[-1] < WIDE_D and v.shape[0] * frames.numel() * v.shape[2:].numel() <= MOST
    return few and key_mask is None and bool((frames != frames[:1]).any())


def self_attention(q, k, v, frames, *, q_src=None, k_src=None, mask=None) -> Tensor:
    """See `fz.kernels.self_attention`; there is no key_mask."""
    if q_src is None:
        return attend(q, k, v, frames)
    plain = len(v) - 1
    source = q_src[None].to(v), k_src[None].to(v), v[-1:]
    if mask is None:
        q, k = (torch.cat([x[:plain].to(v), src]) for x, src in zip((q, k), source[:2], strict=True))
        return attend(q, k, v, frames)
    out = attend(*(torch.cat([x.to(v), src]) for x, src in zip((q, k, v), source, strict=True)), frames)
    fused = torch.where(mask[..., None, None], out[plain], out[plain + 1])
    return torch.cat([out[:plain], fused[None]])


def attend(q: Tensor, k: Tensor, v: Tensor, frames: Tensor) -> Tensor:
    """Plain attention, (B, F, N, Nh, D) each -> the same."""
    d = q.shape[-1]
    if d < LEAST_D:
        q, k, v = (F.pad(x, (0, LEAST_D - d)) for x in (q, k, v))
    # (B, F, R, N, Nh, D) -> (B·F, Nh, R·N, D)
    k, v = (x[:, frames].flatten(2, 3).flatten(0, 1).transpose(1, 2).contiguous() for x in (k, v))
    out = F.scaled_dot_product_attention(q.flatten(0, 1).transpose(1, 2).contiguous(), k, v, scale=d**-0.5)
    return out.transpose(1, 2).unflatten(0, q.shape[:2])[..., :d]
