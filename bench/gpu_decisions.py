"""What do the measurements of `bench.gpu` decide, by rules that were written before them?"""

from collections.abc import Callable

from bench.gpu_run import HOST, Row

Times = dict[tuple[str, str], float]


def decisions(rows: dict[int, list[Row]]) -> list[str]:
    """A line for each rule. rows: of each stage."""
    timed = [row for stage in rows.values() for row in stage if "site" in row]
    # without the host's time; with it where a pass that leaves it out did not come so far
    ms, host = ({(row["site"], row["way"]): row[name] for row in timed if name in row} for name in ("ms", HOST))

    def fastest(times: Times, site: str, among: Callable[[str], bool]) -> tuple[float, str] | None:
        return min(((t, way) for (s, way), t in times.items() if s == site and among(way)), default=None)

    def against(
        site: str, mine: Callable[[str], bool], others: Callable[[str], bool]
    ) -> tuple[float, str, float, str] | None:
        """The fastest of both, by one clock."""
        for times in (ms, host):
            ours, theirs = fastest(times, site, mine), fastest(times, site, others)
            if ours and theirs:
                return *ours, *theirs
        return None

    lines = []
    for site in dict.fromkeys(s for s, way in [*ms, *host] if way == "plain, this (table)"):
        for kind in ("plain", "fused"):
            found = against(
                site,
                lambda way, k=kind: way.startswith(f"{k}, this"),
                lambda way, k=kind: way.startswith(f"{k}, ") and "this" not in way,
            )
            if found is None:
                lines.append(f"{site} {kind}: undecided, not both were timed")
                continue
            ours, tiles, theirs, rival = found
            lines.append(f"{site} {kind}: {tiles}, {theirs / ours:.2f} x as fast as {rival}")
            if kind == "plain" and ours > 1.1 * theirs:
                lines.append(f"{site} plain: take {rival}")
        cross = against(site, lambda way: way == "cross, this", lambda way: way == "cross, SDPA")
        if cross and cross[0] > cross[2]:
            lines.append(f"{site} cross, plain: take SDPA")
    saved = sum(ms.get((s, "torch"), t) - t for (s, way), t in ms.items() if s.startswith("norm") and way == "this")
    lines.append(f"the norm kernel saves {saved:.3f} ms in one norm of each level; from 2 ms a step on it stays")
    for (site, way), t in ms.items():
        eager = ms.get((site, "edit, in a run"))
        if way == "edit, graph" and eager is not None:
            share = 0.05 if site.startswith("512") else 0.1
            lines.append(f"{site}: graphs {'stay' if t < (1 - share) * eager else 'go'}, {eager / t:.2f} x as fast")
    return lines
