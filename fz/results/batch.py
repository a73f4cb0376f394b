"""What does a batch leave beside its jobs' folders? batch.json, batch.csv and batch.html: all results, and a line for
each job that failed. The same whichever processes did the jobs.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fz import records
from fz.clips.media import write_json
from fz.errors import FzError
from fz.metrics.measure import TITLES, as_csv, shown
from fz.records import NUMBER
from fz.settings.jobs import Job
from fz.whole import write_text

JOBS, NAME = "jobs.json", "batch"
TABLES = (JOBS, *(f"{NAME}.{ending}" for ending in ("json", "csv", "html")))
FAILED = "failed"
FAILURE = {"job": str, "line": str, "token": str}
ABOUT = ("method", "clip", "masks", "flow")
ROW = {
    **{"result": str, "edit": int, "source": str, "target": str},
    **{f"{name}?": (*NUMBER, None) for name in TITLES},
    **{f"{name}?": (str, None) for name in ABOUT},
}
COLUMNS = ("job", "edit", "status", "method", "source", "target", *TITLES, "clip", "masks", "flow", "line")


def failure(job: str, line: str, token: str) -> dict[str, str]:
    """Of a job that failed: why, and which attempt it was."""
    return {"job": job, "line": line, "token": token}


def failure_file(out: Path, name: str) -> Path:
    return out / FAILED / f"{name}.json"


def read_failure(out: Path, name: str) -> dict[str, str]:
    """Empty for a job that did not fail."""
    return records.read(failure_file(out, name), FAILURE) or {}


def read_measured(out: Path, name: str) -> list[dict[str, Any]]:
    """A row for each edit of a job; empty for one that is not measured, or whose numbers cannot be read back."""
    return records.read(out / name / "evaluation.json", [ROW]) or []


def rows_of(out: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """A row for each edit of each job, in the jobs' order, and one for each job that failed."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        failed = read_failure(out, job.name)
        measured = [] if failed else read_measured(out, job.name)
        if measured:
            rows += [about(job.name, "done") | {k: v for k, v in row.items() if k in COLUMNS} for row in measured]
            continue
        row = about(job.name, "failed") | {"line": failed.get("line", "its results are no longer there")}
        try:
            settings = job.settings(out)
            row |= {"source": settings.source, "target": " | ".join(e.target for e in settings.edits)}
        except FzError:
            pass
        rows.append(row)
    return rows


def about(job: str, status: str) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "job": job, "status": status}


def write_batch(out: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """batch.json, .csv and .html, each whole or not at all; returns the rows."""
    rows = rows_of(out, jobs)
    write_json(out / f"{NAME}.json", rows)
    for ending, text in (("csv", as_csv(rows)), ("html", page(rows))):
        write_text(out / f"{NAME}.{ending}", text)
    return rows


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text: job and edit, the metrics that any row has, or why it failed."""
    names = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    cells = [["job", *(TITLES[name] for name in names)]]
    done = [row for row in rows if row["status"] == "done"]
    for row in done:
        cells.append([f"{row['job']} {row['edit']}", *(shown(name, row.get(name)) for name in names)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([*(lines if done else []), *(f"{r['job']}: failed. {r['line']}" for r in rows if r not in done)])


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """All results on one page, whose pictures are the jobs' own gifs."""
    names = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    head = "".join(
        f'<th scope="col">{html.escape(text)}</th>' for text in ("job", "source", "edit", *map(TITLES.get, names))
    )
    body = "\n".join(table_row(row, names) for row in rows)
    failed = sum(row["status"] == "failed" for row in rows)
    jobs = len({row["job"] for row in rows})
    told = f"{jobs} jobs, {len(rows) - failed} edits" + (f", {failed} failed" if failed else "")
    return PAGE.replace("@TOLD@", told).replace("@HEAD@", head).replace("@BODY@", body)


def table_row(row: Mapping[str, Any], names: Sequence[str]) -> str:
    job, source, target = (html.escape(str(row[key] or "")) for key in ("job", "source", "target"))
    if row["status"] == "failed":
        line = f'<td colspan="{len(names) + 2}" class="failed">{target}<br>failed: {html.escape(row["line"])}</td>'
        return f'<tr><th scope="row">{job}</th>{line}</tr>'
    clips = "".join(
        f'<td><img loading="lazy" src="{job}/{file}.gif" alt="{text}"><br>{text}</td>'
        for file, text in (("source", source), (f"edit-{row['edit']}", target))
    )
    numbers = "".join(f'<td class="number">{shown(name, row.get(name))}</td>' for name in names)
    return f'<tr><th scope="row"><a href="{job}/">{job}</a></th>{clips}{numbers}</tr>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>A batch of edits</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .4rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums } td.failed { color: #a00 }
img { width: 12rem; max-width: 40vw; display: inline-block } td { max-width: 13rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } a { color: #8bf } td.failed { color: #f88 }
}
</style>
</head>
<body>
<h1>A batch of edits</h1>
<p>@TOLD@</p>
<div class="wide"><table>
<thead><tr>@HEAD@</tr></thead>
<tbody>
@BODY@
</tbody>
</table></div>
</body>
</html>
"""
