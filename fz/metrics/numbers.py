"""Numbers about edited clips: CLIP's consistency and fidelity (FateZero's Table 1), error along motion, and likeness to
a truth.

Functions of arrays; which clips, files and tables is `fz.metrics.measure`'s question. Pictures are (F, H, W, 3) uint8,
features unit vectors. There is no LPIPS here, whose weights would have to be fetched: `clip_patch_distance` is built
alike but is not comparable with it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fz.errors import FzError


def tem_con(images: Tensor) -> float | None:
    """Tem-Con: mean cosine of consecutive frames' features, images (F, D). None for a single frame."""
    return float((images[:-1] * images[1:]).sum(-1).mean()) if len(images) > 1 else None


def frame_acc(images: Tensor, source: Tensor, target: Tensor) -> float:
    """Frame-Acc: share of frames whose features (F, D) are nearer to the target prompt's (D,) than to the source's. A
    tie is no win.
    """
    return float((images @ target > images @ source).float().mean())


def text_score(images: Tensor, target: Tensor) -> float:
    """Mean cosine of frames (F, D) and the target prompt (D,)."""
    return float((images @ target).mean())


def mse_to_psnr(mse: float) -> float:
    """dB for values in [0, 1]; 100, not infinity, for what is the same (JSON has no infinity)."""
    return float(min(100.0, -10 * np.log10(max(mse, 1e-10))))


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Over all pixels and frames at once, or those where mask (F, H, W) is True; None if there is none."""
    same_shape(a, b)
    error = ((a.astype(np.float32) - b.astype(np.float32)) / 255) ** 2
    if mask is not None:
        error = error[mask]
    return mse_to_psnr(float(error.mean(dtype=np.float64))) if error.size else None


def ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """SSIM (Wang et al. 2004) of grey pictures, Gaussian window 11, sigma 1.5, valid positions; mean over those where
    mask is True.
    """
    same_shape(a, b)
    if min(a.shape[1:3]) < 11:
        return None
    x, y = grey(a), grey(b)
    means = blur(torch.cat([x, y, x * x, y * y, x * y]))
    mx, my, xx, yy, xy = means.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2) / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))
    values = index[:, 0] if mask is None else index[:, 0][torch.from_numpy(mask[:, 5:-5, 5:-5].copy())]
    return float(values.mean()) if values.numel() else None


def grey(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) uint8 -> (F, 1, H, W) float64 luma in [0, 1]."""
    return (torch.from_numpy(frames).double() / 255 @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[:, None]


def blur(x: Tensor) -> Tensor:
    line = torch.exp(-((torch.arange(11, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    return F.conv2d(F.conv2d(x, line.view(1, 1, 1, 11)), line.view(1, 1, 11, 1))


def clip_patch_distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Distance of two clips by CLIP's own patches: squared differences of unit patch states, mean over patches, frames
    and layers.

    a, b: a (F, patches, D) of each layer (`ClipModel.patches`). In [0, 4], 0 for the same clip. Made as LPIPS is
    (Zhang et al. 2018), but of a ViT's layers and without learned weights: its numbers are not LPIPS's.
    """
    return float(torch.stack([((x - y) ** 2).sum(-1).mean() for x, y in zip(a, b, strict=True)]).mean())


STIFF = 1e-5  # in the units of a squared difference of neighbours, values in [0, 1]


# ---- motion ------------------------------------------------------------------------------------------------


def warp_error(frames: np.ndarray, flow: np.ndarray, seen: np.ndarray | None = None) -> float | None:
    """Mean squared difference, values in [0, 1], of each frame and the next one fetched back along the flow.

    flow: (F - 1, H, W, 2), where each pixel is in the next frame, pixels right and down, of the source clip. seen: (F -
    1, H, W) bool, pixels that count (None: all); those that leave the picture never count. None where no pixel is left.
    """
    if len(frames) < 2:
        return None
    if flow.shape != (len(frames) - 1, *frames.shape[1:3], 2):
        raise FzError(
            f"flow: got {flow.shape}, expected {(len(frames) - 1, *frames.shape[1:3], 2)}, pixels to the next frame."
        )
    pictures, flow_ = (
        torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(np.array(flow, np.float32)),
    )
    fetched, inside = fetch(pictures[1:], flow_)
    if seen is not None:
        inside = inside & torch.from_numpy(np.asarray(seen, bool))
    error = ((fetched - pictures[:-1]) ** 2).mean(1)[inside]
    return float(error.mean()) if error.numel() else None


def fetch(pictures: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """pictures (n, C, H, W) read at x + flow (n, H, W, 2), bilinear; and where that lies inside, (n, H, W) bool."""
    h, w = pictures.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([x, y], -1) + flow
    scaled = place / torch.tensor([max(w - 1, 1), max(h - 1, 1)]) * 2 - 1
    inside = ((scaled >= -1) & (scaled <= 1)).all(-1)
    return F.grid_sample(pictures, scaled, mode="bilinear", padding_mode="border", align_corners=True), inside


@torch.no_grad()
def estimate_flow(
    frames: np.ndarray, window: int = 9, levels: int = 4, iterations: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Motion by the iterative Lucas-Kanade method on a pyramid (Bouguet 2000), at every pixel.

    frames (F, H, W, 3) uint8 -> flow (F - 1, H, W, 2) float32, and seen (F - 1, H, W) bool: where going and coming back
    agrees within a pixel. Good for motions up to about 2^(levels + 1) pixels of textured surfaces; flat ones get their
    surroundings' motion or none.
    """
    pictures = grey(frames).float()
    if len(pictures) < 2:
        return np.zeros((0, *frames.shape[1:3], 2), np.float32), np.zeros((0, *frames.shape[1:3]), bool)
    there = lucas_kanade(pictures[:-1], pictures[1:], window, levels, iterations)
    back = lucas_kanade(pictures[1:], pictures[:-1], window, levels, iterations)
    returned, inside = fetch(back.permute(0, 3, 1, 2), there)
    seen = inside & ((there.permute(0, 3, 1, 2) + returned).norm(dim=1) < 1)
    return there.numpy(), seen.numpy()


def lucas_kanade(a: Tensor, b: Tensor, window: int, levels: int, iterations: int) -> Tensor:
    """Where each pixel of a (n, 1, H, W) is in b, (n, H, W, 2)."""
    pyramid = [(a, b)]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[-2:]) >= 4 * window:
        pyramid.append(tuple(F.interpolate(p, scale_factor=0.5, mode="bilinear", antialias=True) for p in pyramid[-1]))
    flow = torch.zeros(len(a), *pyramid[-1][0].shape[-2:], 2)
    for x, y in reversed(pyramid):
        h, w = x.shape[-2:]
        if flow.shape[1:3] != (h, w):
            ratio = torch.tensor([w / flow.shape[2], h / flow.shape[1]])
            flow = F.interpolate(flow.permute(0, 3, 1, 2), size=(h, w), mode="bilinear").permute(0, 2, 3, 1) * ratio
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        gx, gy = (
            (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2,
            (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2,
        )
        xx, xy, yy = (mean_of(product, window) for product in (gx * gx, gx * gy, gy * gy))
        # a little stiffness: without texture a pixel moves as its surroundings do
        xx, yy = xx + STIFF, yy + STIFF
        area = xx * yy - xy * xy
        for _ in range(iterations):
            # each pixel of a window was fetched along its own motion: solve for the window's whole motion, not for a
            # step
            late = gx * flow[:, None, ..., 0] + gy * flow[:, None, ..., 1] - (fetch(y, flow)[0] - x)
            bx = mean_of(gx * late + STIFF * flow[:, None, ..., 0], window)
            by = mean_of(gy * late + STIFF * flow[:, None, ..., 1], window)
            step = torch.cat([(yy * bx - xy * by) / area, (xx * by - xy * bx) / area], 1).permute(0, 2, 3, 1) - flow
            flow = flow + step.clamp(-1, 1)
    return flow


def mean_of(x: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)


# ---- over clips --------------------------------------------------------------------------------------------


STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)  # of 1, 2, … degrees of freedom


def student(df: int) -> float:
    """The 97.5% quantile of Student's t for `df` degrees of freedom, within 0.001: from the table, and where that ends
    by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5).
    """
    if df <= len(STUDENT):
        return STUDENT[df - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df**n for n, term in enumerate(terms, start=1))


def half_interval(values: np.ndarray) -> float:
    """Half the 95% interval of the mean of two or more values."""
    return float(student(len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise FzError(f"clips: got frames of {a.shape} and {b.shape}, expected the same number and size.")


__all__ = [
    "clip_patch_distance",
    "estimate_flow",
    "frame_acc",
    "half_interval",
    "psnr",
    "ssim",
    "tem_con",
    "text_score",
    "warp_error",
]
