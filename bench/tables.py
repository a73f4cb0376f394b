"""What do benches append to the CSV file that --csv names? Without torch: one of other columns is refused at once."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from fz.errors import FzError
from fz.settings.place import writable_file

WHERE = ("commit", "machine", "threads")
EDIT = (*WHERE, "step", "size", "frames", "seconds", "of diffusers", "TFLOP", "share of GEMM peak")
ATTENTION = ("commit", "machine", "torch", "kernels", "dtype", "threads", "size", "frames", "anchors", "site", "layers",
             "way", "p20 ms", "p50 ms", "p80 ms", "GFLOP/s", "share of GEMM peak", "largest MB", "peak MB")  # fmt: skip


def checked(path: Path | None, columns: Sequence[str], idle: str = "") -> Path | None:
    """The file, if rows of these columns can be appended to it. idle: a flag beside which nothing is measured. Raises
    FzError.
    """
    if path is None:
        return None
    if idle:
        raise FzError(f"csv: got {path} beside {idle}, which measures nothing. Leave out one.")
    place = writable_file(path, "csv")
    if place.exists() and place.stat().st_size:
        try:
            with open(place, newline="", encoding="utf-8") as file:
                found = next(csv.reader(file), [])
        except (OSError, ValueError, csv.Error) as error:
            raise FzError(f"csv: {place} cannot be read ({error}). Pass another --csv.") from None
        if found != list(columns):
            had, wanted = (", ".join(names)[:160] for names in (found, columns))
            raise FzError(f"csv: {place} has the columns {had}; expected {wanted}. Pass another --csv.")
    return place


def append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Rows to a CSV, with a head where it is new; a column that a row lacks is empty."""
    checked(path, columns)
    new = not path.exists() or not path.stat().st_size
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)
