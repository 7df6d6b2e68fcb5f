"""Worker processes that make batches, each a `webdataset` pipeline: source -> crop -> mask -> stack.

Worker w of n makes every n-th micro-batch of its rank, and the data loader takes them in turn, so their order does not
depend on n. Workers get rank and world as arguments, never from the environment: with wrong ones, a worker would read
every shard, or another rank's, without an error.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, _utils, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.pool import leave_with_parent
from data.reading.fetching import Tally
from data.store.s3 import answered_hosts, remember_hosts
from data.stream.batches import Batch, CropStage, MaskStage, stack_batches
from data.stream.config import StreamConfig
from data.stream.corpora import Corpora
from data.stream.open_corpora import open_readers
from data.stream.source import ReadPlan, SampleSource
from pupujepa.errors import EXIT_CODE_LOST, UserError

_KEPT_BYTES = 16 * 2**20  # larger than any sample
_STOP_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Delivery:
    """A worker's batch (None at its end), with its counts and damaged samples since the last one."""

    batch: Batch | None
    counts: Counter[str]
    damaged: list[str]
    slot: tuple[int, int] | None = None


class Handover:
    """Reused slots of shared memory for codes: fresh pages take the kernel longer than a crop takes us.

    A worker makes at most `prefetch_batches` batches ahead, and training copies each one it takes. So one more slot
    ensures that none is overwritten.
    """

    def __init__(self, recipe: "Recipe"):
        config, dtypes = recipe.config, {manifest.dtype for manifest in recipe.corpora.manifests}
        values = recipe.plan.micro_batch * config.crop_frames * int(recipe.corpora.frontend["mel_bands"])
        slot_bytes = values * max(np.dtype(dtype).itemsize for dtype in dtypes)
        self.slots = config.prefetch_batches + 1
        self.memory = torch.empty(config.workers, self.slots, slot_bytes, dtype=torch.uint8).share_memory_()

    def put(self, batch: Batch, worker: int, number: int) -> tuple[Batch, tuple[int, int]]:
        """Returns a worker's `number`-th batch without its codes, and the slot of the codes."""
        slot = worker, number % self.slots  # reused after `slots` batches
        self._codes(slot, batch.codes).copy_(batch.codes)
        return replace(batch, codes=batch.codes.to("meta")), slot  # shape and dtype only

    def take(self, batch: Batch, slot: tuple[int, int]) -> Batch:
        """Returns the batch with its own copy of the codes."""
        return replace(batch, codes=self._codes(slot, batch.codes).clone())  # the worker will overwrite the slot

    def _codes(self, slot: tuple[int, int], like: Tensor) -> Tensor:
        return self.memory[slot][: like.nbytes].view(like.dtype).view(like.shape)


class WorkerLostError(UserError):
    """A data worker was killed, as by the kernel when memory runs out."""

    exit_code = EXIT_CODE_LOST


@dataclass(frozen=True)
class Failure:
    """A UserError of a worker, passed to the training process with the worker's counts."""

    error: UserError
    counts: Counter[str]


@dataclass(frozen=True)
class Recipe:
    """Everything that a worker needs to make its micro-batches; picklable."""

    config: StreamConfig
    corpora: Corpora
    plan: ReadPlan
    crop: CropStage
    mask: MaskStage | None

    def batches(self, worker: int, num_workers: int) -> Iterator[Delivery | Failure]:
        """Yields the micro-batches of one worker; a UserError ends them."""
        plan = replace(self.plan, worker=worker, num_workers=num_workers)
        tally = Tally()
        try:
            with open_readers(self.config, self.corpora, plan, tally=tally) as (readers, follow):
                source = SampleSource(self.corpora, readers, plan, follow=follow)
                pipeline = webdataset.DataPipeline(
                    source,
                    webdataset.map(partial(self.crop, tally=tally)),
                    webdataset.map(self.mask) if self.mask is not None else None,
                    partial(stack_batches, micro_batch=plan.micro_batch),
                )
                for batch in pipeline:
                    yield Delivery(batch, tally.take(), source.take_damaged())
            yield Delivery(None, tally.take(), [])
        except UserError as error:
            # passed as an object: the data loader would raise its traceback as text instead of its sentence
            yield Failure(error, tally.take())


def start_server() -> None:
    """Starts the process that workers are forked from, without waiting.

    Its imports take seconds; an early call overlaps them with the work before the first batch.
    """
    with _stop_signals_held_back():
        _worker_context()
        forkserver.ensure_running()


@contextmanager
def deliveries_of(recipe: Recipe, *, pin_memory: bool) -> Iterator[Iterator[Delivery | Failure]]:
    """Yields all deliveries in the order of the micro-batches; the workers end with the block."""
    with _stop_signals_held_back():
        handover = Handover(recipe) if recipe.config.workers else None
        deliveries = iter(_data_loader(recipe, handover))
    try:
        yield (_taken(delivery, handover, pin_memory=pin_memory) for delivery in _whole_deliveries(deliveries))
    finally:
        if isinstance(deliveries, _MultiProcessingDataLoaderIter):
            _end_workers(deliveries)


def _end_workers(deliveries: _MultiProcessingDataLoaderIter) -> None:
    """Kills the workers; there is no public way.

    torch ends them when the iterator is collected, which a traceback delays. It waits 10 s for each that is stuck, in a
    download for example, because they block SIGTERM.
    """
    if deliveries._worker_pids_set:
        _utils.signal_handling._remove_worker_pids(id(deliveries))  # their deaths are no errors from here on
        deliveries._worker_pids_set = False
    for worker in deliveries._workers:
        worker.kill()
    deliveries._shutdown_workers()


def _whole_deliveries(deliveries: Iterator[Delivery | Failure]) -> Iterator[Delivery | Failure]:
    """Yields deliveries.

    Raises:
        WorkerLostError: a worker died, before it handed over a batch or while it did.
    """
    while True:
        try:
            delivery = next(deliveries)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if "in DataLoader worker process" in str(error):
                raise  # a worker's own error, with its traceback
            lost = _lost_workers(deliveries)
            if not lost and isinstance(error, RuntimeError):
                raise
            raise WorkerLostError(
                f"{lost or 'a data worker ended'}, so no batch follows; if the kernel's log says out of memory, lower "
                "stream.workers, and run again"
            ) from error
        yield delivery


def _lost_workers(deliveries: Iterator[Delivery | Failure]) -> str:
    """Returns the ends of dead workers in words, "" if all live."""
    if not isinstance(deliveries, _MultiProcessingDataLoaderIter):
        return ""
    return " and ".join(
        f"data worker {number} (process {worker.pid}) {_end_of(worker.exitcode)}"
        for number, worker in enumerate(deliveries._workers)
        if not worker.is_alive()
    )


def _end_of(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}"


def _taken(delivery: Delivery | Failure, handover: Handover | None, *, pin_memory: bool) -> Delivery | Failure:
    """Returns a delivery whose batch owns its memory, page-locked with `pin_memory`."""
    if isinstance(delivery, Failure) or delivery.batch is None:
        return delivery
    batch = delivery.batch
    if handover is not None and delivery.slot is not None:
        batch = handover.take(batch, delivery.slot)
    return replace(delivery, batch=batch.pin_memory() if pin_memory else batch)


@contextmanager
def _stop_signals_held_back() -> Iterator[None]:
    """Blocks the stop signals, for good in every process started within.

    A scheduler signals all processes of a job step, a terminal its whole group. Training can finish and save its step
    only if the workers and their fork server outlive that. They end with the stream, by kill, or with the training
    process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # children inherit the mask
    try:
        # started first, because it unblocks SIGINT and SIGTERM
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _data_loader(recipe: Recipe, handover: Handover | None) -> DataLoader:
    workers = recipe.config.workers
    in_processes = {
        "multiprocessing_context": _worker_context(),
        "prefetch_factor": recipe.config.prefetch_batches,
        "persistent_workers": True,
        "worker_init_fn": partial(_prepare_worker, _store_environment(), answered_hosts()),
    }
    return DataLoader(
        _Deliveries(recipe, handover),
        batch_size=None,  # workers batch by themselves
        num_workers=workers,
        collate_fn=_as_is,
        # its own, so that the loader does not advance the generator of the training process
        generator=torch.Generator().manual_seed(0),
        **(in_processes if workers else {}),
    )


class _Deliveries(IterableDataset):
    """The deliveries of the process that iterates it."""

    def __init__(self, recipe: Recipe, handover: Handover | None):
        super().__init__()
        self.recipe, self.handover = recipe, handover

    def __iter__(self) -> Iterator[Delivery | Failure]:
        worker = get_worker_info()
        number = 0
        for delivery in self.recipe.batches(*((worker.id, worker.num_workers) if worker else (0, 1))):
            if worker and self.handover and isinstance(delivery, Delivery) and delivery.batch is not None:
                batch, slot = self.handover.put(delivery.batch, worker.id, number)
                delivery, number = replace(delivery, batch=batch, slot=slot), number + 1
            yield delivery


def _worker_context() -> Any:
    """Returns the forkserver context: S3 clients do not survive a fork, and torch is imported only once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "data.stream.workers"])
    return context


def _store_environment() -> dict[str, str]:
    # the fork server keeps the environment of its start, which may be older than the store's address and keys
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _prepare_worker(environment: dict[str, str], hosts: frozenset[str], worker: int) -> None:
    leave_with_parent()
    remember_hosts(hosts)
    # glibc keeps freed blocks up to the largest size ever freed, and returns larger ones to the kernel at once; samples
    # exceed its initial limit, and fresh pages would cost as much as reading them
    freed_at_once = bytearray(_KEPT_BYTES)
    del freed_at_once
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(environment)


def _as_is(delivery: Any) -> Any:
    return delivery
