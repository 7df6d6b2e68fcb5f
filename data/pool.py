"""A pool of processes for pure functions; the result does not depend on the number of workers.

Processes are forked from a clean server with the imports done, never from this process, whose threads and connections
would not survive. Each computes in one thread, because sums in a thread pool depend on its size. The caller alone
decides about the end: workers take no signal of a terminal, and leave the work that nobody waits for any more.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import TypeVar

_LEAVE_S = 10.0  # for workers in a long call of a library
Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[tuple[int, Item]], *, workers: int, preload: str
) -> Generator[tuple[int, Result], None, None]:
    """Yields (position, function(item)) for every (position, item), in order of completion.

    Args:
        function: at the top level of a module; its error ends the iteration.
        preload: module that workers start with.

    If the caller leaves the iteration early, by an error or a signal too, the work that has begun is given up.

    Raises:
        BrokenProcessPool: a worker died.
    """
    if not items:
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    has_ended = False
    temporary = tempfile.TemporaryDirectory(prefix="pupujepa-")
    # the server keeps the environment of its start, which may lack the store's credentials
    prepared = (dict(os.environ), temporary.name)
    with _hang_up_blocked():
        executor = ProcessPoolExecutor(
            min(workers, len(items)), mp_context=context, initializer=_prepare_worker, initargs=prepared
        )
    try:
        pending: dict[Future[Result], int] = {}
        rest = iter(items)
        while True:
            # a few items ahead of every worker: a million futures would not fit
            while len(pending) < 3 * workers and (item := next(rest, None)) is not None:
                with _hang_up_blocked():
                    pending[executor.submit(_call, function, item[1])] = item[0]
            if not pending:
                has_ended = True
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    finally:
        executor.shutdown(wait=has_ended, cancel_futures=True)
        if not has_ended:
            _give_up(set(multiprocessing.active_children()) - others)
        temporary.cleanup()


@contextmanager
def _hang_up_blocked() -> Iterator[None]:
    """Lets processes that start now inherit a blocked SIGHUP.

    A hang-up of the terminal would end those that the executor needs to shut down.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def warm_up(preload: str) -> None:
    """Lets the server of `map_unordered` finish its imports, which take seconds at its start."""
    list(map_unordered(abs, [(0, 0)], workers=1, preload=preload))


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, preload: str
) -> Iterator[Result]:
    """Yields function(item) in the order of the items; one worker is this process itself."""
    if workers == 1:
        yield from map(function, items)
        return
    early: dict[int, Result] = {}
    due = 0
    for position, result in map_unordered(function, [*enumerate(items)], workers=workers, preload=preload):
        early[position] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    """Calls the function; SIGTERM ends the worker within the call only."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        return function(item)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sending a result must not be cut short


def _leave(number: int, _frame: object) -> None:
    # an exception would be lost in a callback of a decoder, which would take it for the end of the audio
    os._exit(128 + number)


def _give_up(workers: set[BaseProcess]) -> None:
    """Ends workers in their calls, those that were queued too, and kills workers that do not end."""
    deadline = time.monotonic() + _LEAVE_S
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.terminate() if time.monotonic() < deadline else worker.kill()
        wait_for([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.1)
    for worker in workers:
        worker.join()


def _prepare_worker(environment: dict[str, str], temporary: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = temporary  # whatever a worker leaves there goes with the pool
    os.environ["OMP_NUM_THREADS"] = "1"  # for a later import of torch
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # a terminal or SLURM signals the caller too
        signal.signal(number, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    # a killed build must not leave workers that keep writing
    leave_with_parent()


def leave_with_parent() -> None:
    """Ends this worker process when the process that started it ends, for any reason.

    The fork server does not: it lives as long as its workers, which see no change of parent.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent.sentinel,), name="leave with parent", daemon=True).start()


def _leave_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
