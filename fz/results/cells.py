"""Long measurements, one JSON file for each cell: what is done again, and by which processes?

So one that was stopped goes on, and a second one changes nothing. A folder of cells is one process's at a time
(`fz.results.lock.claimed`), which may have others do the work.
"""

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fz import records
from fz.clips.media import write_json
from fz.memory.machine import start_alone

Item, Found = TypeVar("Item"), TypeVar("Found")


def cell(
    file: Path, key: str, schema: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What a cell holds: read where it was measured before, with the same key, else measured and written. One that is
    damaged, or does not fit the schema, is measured again.
    """
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
    one thread.
    """
    if processes == 1:
        if begin:
            begin()
        yield from map(do, items)
        return
    # processes of their own: a forked one may hang in a library's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=functools.partial(begin_alone, begin)) as pool:
        yield from pool.map(do, items)


def begin_alone(begin: Callable[[], None] | None) -> None:
    start_alone()
    if begin:
        begin()
