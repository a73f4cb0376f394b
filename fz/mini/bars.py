"""What figures of held-out clips say: their means with 95 % intervals beside the bars they are to reach, and the
paper's orderings.

A share's interval is Wilson's, a mean's Student's, a difference's Student's over the clips that both have. What a
figure is, is `fz.mini.evaluate`'s question.
"""

import math
from collections.abc import Sequence

import numpy as np

from fz.metrics.numbers import half_interval

KINDS_OF_EDIT = ("attribute", "shape", "style")
# figure -> least mean over clips
BARS = {
    "vae psnr at 128 px": 30,
    "text to image: kind": 0.97,
    "text to image: colour": 0.99,
    "text to image: scene": 0.99,
    "two things: all right": 0.85,
    "reconstruction, fused: psnr": 28,
    "blend mask: iou": 0.85,
    "blend mask of two: iou": 0.7,
    "attribute, fused: colour": 0.97,
    "attribute, fused: background psnr": 27,
    "attribute, fused: outline iou": 0.85,
    "shape, fused: kind": 0.75,
    "shape, fused: background psnr": 26,
    "style, fused: style": 0.9,
    "style, fused: outline iou": 0.8,
    "removal, fused: no object": 0.95,
    "removal, fused: psnr to the empty scene": 30,
}
# figure -> what it must be better than
ORDERINGS = [
    ("reconstruction, fused: psnr", "reconstruction, plain: psnr"),
    *((f"{name}, fused: psnr to counterfactual", f"{name}, plain: psnr to counterfactual") for name in KINDS_OF_EDIT),
    # less change is steadier
    *((f"{name}, plain: change along motion", f"{name}, fused: change along motion") for name in KINDS_OF_EDIT),
    ("shape, fused: kind", "shape, full self fusion: kind"),
    ("shape, fused: psnr to counterfactual", "shape, no self fusion: psnr to counterfactual"),
    ("shape, fused: psnr to counterfactual", "shape, full self fusion: psnr to counterfactual"),
    ("attribute, fused: psnr to counterfactual", "attribute, reconstruction attention: psnr to counterfactual"),
]
SHARES = (
    "colour",
    "kind",
    "scene",
    "style",
    "no object",
    "both kinds",
    "both colours",
    "all right",
    "other's colour",
)

Row = tuple[int, str, float]  # clip, figure, value


def interval(name: str, values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a figure's mean over clips; all that is possible for a single clip."""
    n, mean = len(values), float(values.mean())
    if name.rpartition(": ")[2] in SHARES:
        z2 = 1.96**2
        centre, half = (
            (mean + z2 / (2 * n)) / (1 + z2 / n),
            math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n),
        )
        return centre - half, centre + half
    half = half_interval(values) if n > 1 else math.inf
    return mean - half, mean + half


def table(rows: Sequence[Row]) -> list[str]:
    """Lines: every figure, those with a bar first, then the orderings with the share of clips in which each holds."""
    by_name: dict[str, dict[int, float]] = {}
    for clip, name, value in rows:
        by_name.setdefault(name, {})[clip] = value
    lines = [f"{'figure':58} {'mean':>8}  {'95 % interval':>17} {'clips':>6}  bar"]
    for name in sorted(by_name, key=lambda n: (list(BARS).index(n) if n in BARS else len(BARS), n)):
        values = np.array(list(by_name[name].values()))
        low, high = interval(name, values)
        bar = "" if name not in BARS else f"{'reached' if values.mean() >= BARS[name] else 'SHORT':8} {BARS[name]}"
        lines.append(
            f"{name:58} {values.mean():8.3f}  {f'{low:.3f} … {high:.3f}':>17} {len(values):6d}  {bar}".rstrip()
        )
    verdicts = {"holds": 0, "undecided": 0, "FAILS": 0}
    found = []
    for better, worse in ORDERINGS:
        if better in by_name and worse in by_name:
            both = sorted(by_name[better].keys() & by_name[worse].keys())
            gain = np.array([by_name[better][c] - by_name[worse][c] for c in both])
            verdict, line = compared(gain)
            verdicts[verdict] += 1
            found.append(f"  {verdict}  {better} > {worse}: {line}")
    if found:
        lines.append(
            "orderings: first - second, mean and 95 % interval over clips; share of clips where the first is larger"
        )
        lines += [*found, "  " + ", ".join(f"{count} {verdict.lower()}" for verdict, count in verdicts.items())]
    return lines


def compared(gain: np.ndarray) -> tuple[str, str]:
    """What the differences (n,) of two figures say: 'holds' and 'FAILS' beyond the interval, else 'undecided'; and a
    line.

    With 'undecided' comes how many clips would decide it, if mean and spread stay what they are.
    """
    mean, half = float(gain.mean()), half_interval(gain) if len(gain) > 1 else math.inf
    line = f"{mean:+.3f} ± {half:.3f}  ({(gain > 0).mean():.0%} of {len(gain)})"
    if abs(mean) > half:
        return ("holds" if mean > 0 else "FAILS"), line
    if mean and math.isfinite(half):
        line += f"; about {math.ceil(len(gain) * (half / mean) ** 2)} clips would decide"
    return "undecided", line
