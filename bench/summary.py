"""What the cells of `bench.table1` say: means and intervals, Markdown tables, and whether FateZero is first in Tem-Con,
as the paper says.

The clip is the unit: a clip's edits and seeds are averaged before anything else, and two methods are compared clip by
clip.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fz.metrics.measure import TITLES
from fz.metrics.numbers import half_interval

Row = Mapping[str, Any]
Summary = Mapping[str, Mapping[str, float]]  # metric -> mean, half (of the 95% interval), clips

EDITS = 0.8  # the Frame-Acc from which a method counts as one that edits
OURS = "FateZero"


def by_clip(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Clip -> the mean of a metric over its edits and seeds, where it has any."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get(name) is not None:
            found.setdefault(row["clip"], []).append(row[name])
    return {clip: sum(values) / len(values) for clip, values in found.items()}


def interval(values: Sequence[float]) -> dict[str, float]:
    """mean, clips, and half the 95% interval (Student's t; absent for one clip)."""
    half = {"half": half_interval(np.array(values))} if len(values) > 1 else {}
    return {"mean": float(np.mean(values)), "clips": len(values)} | half


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Metric -> `interval` over clips, of the metrics that any row has."""
    found = {name: list(by_clip(rows, name).values()) for name in TITLES}
    return {name: interval(values) for name, values in found.items() if values}


def ranked(summaries: Mapping[str, Summary], methods: Sequence[str]) -> list[str]:
    """The methods that edit (mean Frame-Acc >= EDITS), highest Tem-Con first."""

    def mean(method: str, name: str) -> float:
        return summaries.get(method, {}).get(name, {}).get("mean", -1.0)

    editing = [method for method in methods if mean(method, "frame_acc") >= EDITS and mean(method, "tem_con") > -1]
    return sorted(editing, key=lambda method: -mean(method, "tem_con"))


def table(methods: Sequence[str], summaries: Mapping[str, Summary], ranks: Sequence[str] = ()) -> str:
    """Markdown: a row for each method that has cells, mean ± half the interval. ranks: methods in order, for a column
    of places.
    """
    methods = [method for method in methods if summaries.get(method)]
    names = [name for name in TITLES if any(name in summaries[method] for method in methods)]
    head = ["method", *(["place"] if ranks else []), *(TITLES[name] for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in methods:
        cells = [method]
        if ranks:
            cells.append(str(ranks.index(method) + 1) if method in ranks else "-")
        cells += [shown(name, summaries[method].get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(name: str, value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    scale, digits = (1000 if name == "warp_error" else 1), (4 if name == "tem_con" else 3)
    half = f" ± {scale * value['half']:.{digits}f}" if "half" in value else ""
    return f"{scale * value['mean']:.{digits}f}{half}"


def verdict(rows: Mapping[str, Sequence[Row]], methods: Sequence[str]) -> str:
    """Whether FateZero is first in Tem-Con among the methods that edit, and by how much, clip by clip."""
    summaries = {method: summary(rows.get(method, ())) for method in methods}
    if not any(rows.get(method) for method in methods):
        return "None of the methods that are compared was run."
    if not any("tem_con" in s for s in summaries.values()):
        judged = any("frame_acc" in s for s in summaries.values())
        return "Clips of one frame have no Tem-Con." if judged else "No --clip-model, hence no Tem-Con and Frame-Acc."
    order = ranked(summaries, methods)
    if not order:
        return f"No method reaches Frame-Acc {EDITS}: none counts as editing."
    first = order[0]
    said = (
        f"First in Tem-Con among methods that edit (Frame-Acc >= {EDITS}): {first}, "
        f"{summaries[first]['tem_con']['mean']:.4f}."
    )
    if OURS not in order:
        if "frame_acc" not in summaries.get(OURS, {}):
            return f"{said} {OURS} was not run."
        return f"{said} {OURS} is not: its Frame-Acc is {summaries[OURS]['frame_acc']['mean']:.3f}."
    if first == OURS:
        return said if len(order) == 1 else f"{said} {ahead(rows, OURS, order[1])}"
    return (
        f"{said} {OURS} is not: {summaries[OURS]['tem_con']['mean']:.4f}, place {order.index(OURS) + 1}. "
        f"{ahead(rows, first, OURS)}"
    )


def ahead(rows: Mapping[str, Sequence[Row]], first: str, second: str) -> str:
    """By how much the first method's Tem-Con is above the second's, over the clips that both have."""
    a, b = by_clip(rows[first], "tem_con"), by_clip(rows[second], "tem_con")
    found = interval([a[clip] - b[clip] for clip in a if clip in b])
    half = found.get("half")
    doubt = " (the interval holds 0: not told apart)" if half is not None and abs(found["mean"]) <= half else ""
    return (
        f"{first} is ahead of {second} by {found['mean']:.4f}{f' ± {half:.4f}' if half is not None else ''} clip "
        f"by clip{doubt}."
    )
