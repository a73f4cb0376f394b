"""Long measurements, one JSON file for each cell: what is done again, and by which processes?

So one that was stopped goes on, and a second one changes nothing. A folder of cells is one process's at a time
(`fz.results.lock.claimed`), which may have others do the work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fz import records
from fz.clips.media import write_json
from fz.memory.workers import workers

Item, Found = TypeVar("Item"), TypeVar("Found")


def cell(
    file: Path, key: str, schema: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What a cell holds: read where it was measured before, with the same key, else measured and written. One that is
    damaged, or does not fit the schema, is measured again. The file's name has digits of the key: what is measured by
    other settings lies beside it.
    """
    file = file.with_name(f"{file.stem}-{key[:8]}{file.suffix}")
    content = read_cell(file, schema)
    if content is None or content["key"] != key:
        content = {"key": key, **measure()}
        write_json(file, content)
    return content


def read_cell(file: Path, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    return records.read(file, {"key": str, **schema})


def each(
    do: Callable[[Item], Found], items: Iterable[Item], processes: int, begin: Callable[[], None] | None = None
) -> Iterator[Found]:
    """do(item) of every item, in order, by so many processes. begin: what each does first. Beside others, a process has
    one thread. When the last one was taken, or no more is wanted, they end.
    """
    if processes == 1:
        if begin:
            begin()
        yield from map(do, items)
        return
    with workers(processes, begin) as pool:
        yield from pool.map(do, items)
