"""Which file may an evaluation's rows be written to? One of its own, or one that there was not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fz import records
from fz.clips.media import write_json
from fz.errors import FzError
from fz.metrics.measure import as_csv
from fz.results.beside import EVALUATION
from fz.results.claim import RUN, read_run
from fz.settings.place import writable
from fz.whole import write_text

CSV_BEGINS = "result,edit,method,source,target,"


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise FzError where OUT.json or OUT.csv cannot be written, or is there and is no evaluation, unless it may be
    replaced; what a run is known by never is. One that a run lists may be damaged.
    """
    writable(out.parent, "out")
    run = read_run(out.parent)
    own = {*EVALUATION} & {*(run["files"] if run else ())}
    if out.name + ".json" == RUN and run is not None:
        raise FzError(f"out: {out.parent / RUN} says what the results there are of. Pass another --out.")
    for file in (Path(f"{out}.json"), Path(f"{out}.csv")):
        if not overwrite and file.exists() and file.name not in own and not is_evaluation(file):
            raise FzError(
                f"out: {file} is there, and is no evaluation. Pass another --out, or --overwrite to replace it."
            )


def is_evaluation(file: Path) -> bool:
    """Is it one of the files that `write_rows` writes?"""
    if not file.is_file():
        return False
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read(len(CSV_BEGINS)) == CSV_BEGINS
    return bool(records.read(file, [{"result": str, "edit": int, "target": str}]))


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """OUT.json and OUT.csv, each whole or not at all."""
    write_json(Path(f"{out}.json"), rows)
    write_text(Path(f"{out}.csv"), as_csv(rows))
