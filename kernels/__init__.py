"""Attention and norms as the editor calls them: three functions in three versions each, and the place that chooses.

`reference` builds the maps, word for word as the paper's Algorithm 2. `torch_ops` never does (`small` is its way with
small maps). `triton_*` are the GPU kernels.
FZ_KERNELS=reference|torch|triton forces one; otherwise Triton runs on an NVIDIA GPU that it supports, and torch
everywhere else: on CPUs, Apple's and AMD's GPUs. For AMD's the kernels compile, but nobody has seen them run there.
"""

import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from fz.errors import FzError, suggest
from fz.kernels import reference, small, torch_ops

# the cross-attention kernel does not compile before it (torch 2.6)
OLDEST = (3, 2)
VERSIONS = ("reference", "torch", "triton")
_last: str | None = None


def which() -> str | None:
    """The version that the last call took: 'reference', 'torch', 'triton', or None before any call."""
    return _last


def choose(device: torch.device, needs_grad: bool = False) -> str:
    """The version that operands on this device take. Raises FzError if FZ_KERNELS asks for what cannot run here."""
    forced = os.environ.get("FZ_KERNELS", "")
    if forced and forced not in VERSIONS:
        raise FzError(f"FZ_KERNELS is '{forced}'; it can be reference, torch or triton.{suggest(forced, VERSIONS)}")
    if forced == "triton":
        reason = _triton_cannot(device)
        if reason:
            raise FzError(f"FZ_KERNELS=triton: {reason}. Unset FZ_KERNELS, or set it to torch.")
    # no kernel here has a backward pass; training takes torch's own
    if needs_grad:
        return forced if forced in ("reference", "torch") else "torch"
    return forced or ("torch" if device.type != "cuda" or torch.version.hip or _triton_cannot(device) else "triton")


def _triton_cannot(device: torch.device) -> str | None:
    """Why Triton cannot run on this device, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it has no build for macOS and Windows)"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}, which compiles the kernels"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return (
            f"the operands are on '{device}' and Triton needs a GPU "
            "(TRITON_INTERPRET=1 interprets its kernels on any device)"
        )
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than what the kernels are made for (compute capability 8.0)"
    return None


def _version(*operands: Tensor | None) -> ModuleType:
    global _last
    needs_grad = torch.is_grad_enabled() and any(o is not None and o.requires_grad for o in operands)
    _last = choose(operands[-1].device, needs_grad)
    if _last == "triton":
        from fz.kernels import triton_ops

        return triton_ops
    return reference if _last == "reference" else torch_ops


def self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    frames: Tensor,
    *,
    q_src: Tensor | None = None,
    k_src: Tensor | None = None,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Spatial-temporal self-attention (FateZero eq. 8), the last branch blended with the source's (eq. 7).

    q, k, v:  (B, F, N, Nh, D) by strides; D must be contiguous.
    frames:   (F, R) int64: frame i reads keys and values of frames[i]; a frame named twice counts twice. Queries may
              be of fewer frames than keys and values: it has a row for each frame of q.
    q_src, k_src: None for plain attention, or (F, N, Nh, D): in the last branch, rows where mask is False take
              softmax(q_src k_srcᵀ/√D) v[-1], rows where it is True softmax(q[-1] k[-1]ᵀ/√D) v[-1].
    mask:     (F, N) bool, True = edited. None: no row is edited, and q and k may lack the last branch.
    key_mask: (B, F, N) bool, False keys are attended to by nobody; a row without any key left gives zeros.
    Returns (B, F, N, Nh, D), dtype of v; softmax and accumulation are float32 for half types.
    """
    ops = _version(q_src, k_src, q, k, v)
    if ops is torch_ops and small.serves(v, frames, key_mask):
        return small.self_attention(q, k, v, frames, q_src=q_src, k_src=k_src, mask=mask)
    return ops.self_attention(q, k, v, frames, q_src=q_src, k_src=k_src, mask=mask, key_mask=key_mask)


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_src: Tensor | None = None,
    k_src: Tensor | None = None,
    v_src: Tensor | None = None,
    map_branch: int | None = None,
    map_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention to the prompts; in the last branch, if q_src is given, the sum of the source's and the edit's.

    q:      (B, F, N, Nh, D); k, v: (B, L, Nh, D), v[-1] already mixed with weights (`FusionStep.edit_weights`).
    q_src (F, N, Nh, D), k_src, v_src (L, Nh, D): the last branch becomes softmax(q_src k_srcᵀ/√D) v_src +
            softmax(q[-1] k[-1]ᵀ/√D) v[-1]; if q lacks the last branch, the second term is nothing and is skipped.
    map_branch: a branch of q: also return its softmax averaged over heads, times map_weights (L, W) if given.
    Returns out (B, F, N, Nh, D) and None or the map (F, N, L or W).
    """
    ops = _version(q_src, k_src, v_src, q, k, v)
    return ops.cross_attention(
        q, k, v, q_src=q_src, k_src=k_src, v_src=v_src, map_branch=map_branch, map_weights=map_weights
    )


def group_norm(
    x: Tensor,
    frames: int,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    time: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """GroupNorm of a clip or of each frame, and what stands before and after it in a ResNet block.

    x:      (B·F, C, H, W), channels_last for speed; each `frames` in a row share statistics (F a clip, 1 a frame).
    weight, bias: (C,); eps is added to the variance.
    time:   (B·F, C), added to all pixels of a frame first; the same for frames that share statistics. x may be written.
    silu:   y · sigmoid(y) of the result.
    Returns (B·F, C, H, W) in x's dtype; statistics are float32 for half types.
    """
    # the compiler makes kernels of its own of what it can read
    ops = torch_ops if torch.compiler.is_compiling() else _version(time, weight, bias, x)
    return ops.group_norm(x, frames, groups, weight, bias, eps, time=time, silu=silu)
