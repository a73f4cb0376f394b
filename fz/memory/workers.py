"""Processes beside others: how do they start, and how do they end with what they work for?"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def workers(processes: int, begin: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """So many processes of one thread each. begin: what each does first. An error or interrupt in the block ends them
    at once, whatever they are at.
    """
    others = set(multiprocessing.active_children())
    # processes of their own: a forked one may hang in a library's locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=partial(start_alone, begin)) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            # waits until the pool's own thread has let go of its queues
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown(cancel_futures=True)


def start_alone(begin: Callable[[], None] | None = None) -> None:
    """Of a process beside others: on one thread, and gone when the process that started it is, even killed."""
    if threading.current_thread() is threading.main_thread():
        # a Ctrl-C reaches all of a terminal's processes, and a pool's go on with their next task after an error
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if begin:
        begin()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
