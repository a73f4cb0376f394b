"""Long measurements, one JSON file for each cell: one that was stopped goes on, and a second one changes nothing.

A folder of cells is one process's at a time, which may have others do the work.
"""

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fz import records
from fz.clips.media import write_json
from fz.errors import FzError
from fz.memory.machine import start_alone
from fz.results import own
from fz.results.lock import Lock

Item, Found = TypeVar("Item"), TypeVar("Found")


@contextlib.contextmanager
def folder_of_cells(out: Path) -> Iterator[None]:
    """out, this process's own for the block. Raises FzError where another process writes there, or nobody can."""
    made: list[Path] = []
    try:
        made = own.made(out)
        lock = Lock(out)
    except OSError as error:
        own.unmake(made)
        raise FzError(f"out: {out} cannot be written ({error.strerror}). Pass another --out.") from None
    try:
        with lock:
            yield
    finally:
        own.unmake(made)


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
