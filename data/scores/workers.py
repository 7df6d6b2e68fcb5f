"""Work spread over processes, in order, without surviving its parent and without hiding a crash."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
_CHUNK = 4


def map_in_order(function: Callable[[In], Out], items: Sequence[In], *, workers: int) -> Iterator[Out]:
    """Yields function(item) in the order of the items; with one worker, in this process.

    Raises:
        BrokenProcessPool: a worker died.
        Exception: whatever the function raises; what has not begun is dropped.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # spawned, not forked: a fork copies the locks of threads that it does not copy
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield from executor.map(function, items, chunksize=_CHUNK)
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
