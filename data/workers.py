"""The processes that make batches, each a `webdataset` pipeline: source -> crop -> mask -> the user's stages -> stack.

Worker w of n makes every n-th micro-batch of its rank, and the data loader hands them out in turn, so their order does
not depend on n. Workers learn rank and world from their arguments, never from the environment: a worker that guesses
wrong reads every shard, or another rank's, without an error.
"""

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.batches import Batch, CropStage, MaskStage, stack_batches
from data.cache import ShardCache
from data.cache_room import CacheConfig
from data.manifest import Manifest
from data.pool import leave_with_parent
from data.prefetch import Prefetcher
from data.reader import ShardReader
from data.source import ReadPlan, SampleSource
from data.store import RetryPolicy, open_store
from data.tally import Tally
from pupujepa.errors import UserError

Stage = Callable[..., Any]
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class StreamConfig:
    """What is read and how.

    url: folder of one split: a path, file:// or s3://.
    seed: of order, crops and masks.
    crop_frames: frames of a crop; 100 frames are a second.
    global_batch: samples of one step over all ranks and micro-batches.
    lanes: runs that the data is cut into; a multiple of every world size that the run may have.
    window_shards: shards of a lane that are shuffled together; each lane keeps so many in use.
    workers: processes of each rank that make batches; 0 makes them in the training process.
    crops_per_sample: draws of each sample in an epoch.
    cache_dir: folder on the node's disk for shards of an object store; null: below the system's temporary folder.
    cache_bytes: the cache never takes more.
    max_bad_fraction: the run stops when more of a rank's draws of an epoch are damaged.
    prefetch_batches: micro-batches that each worker makes ahead.
    prefetch_bytes: of shards that each rank fetches into the cache ahead of the windows that it reads.
    retries: how long to insist on a store that fails for the moment.
    """

    url: str = ""
    seed: int = 0
    crop_frames: int = 1024
    global_batch: int = 1024
    lanes: int = 8
    window_shards: int = 4
    workers: int = 2
    crops_per_sample: int = 1
    cache_dir: str | None = None
    cache_bytes: int = 64 * 2**30
    max_bad_fraction: float = 0.01
    prefetch_batches: int = 2
    prefetch_bytes: int = 8 * 2**30
    retries: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class Delivery:
    """What a worker hands over: a batch (None at its end), and what it counted and found damaged since the last."""

    batch: Batch | None
    counts: Counter[str]
    damaged: list[str]

    def pin_memory(self) -> "Delivery":
        """Returns it with the batch in page-locked memory; called by the data loader."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


@dataclass(frozen=True)
class Failure:
    """An error that the user can put right, on its way from a worker to the training process."""

    error: UserError


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to make its micro-batches; picklable."""

    config: StreamConfig
    manifest: Manifest
    plan: ReadPlan
    crop: CropStage
    mask: MaskStage | None
    stages: tuple[Stage, ...]

    def batches(self, worker: int, num_workers: int) -> Iterator[Delivery]:
        """Yields the micro-batches of one worker."""
        plan = replace(self.plan, worker=worker, num_workers=num_workers)
        tally = Tally()
        with ExitStack() as resources:
            cache = node_cache(self.config, self.manifest, tally=tally)
            reader = ShardReader(self.config.url, self.manifest, cache=cache, tally=tally)
            resources.callback(reader.close)
            follow = None
            if cache is not None:
                own_lanes = plan.lanes[worker::num_workers]
                prefetcher = Prefetcher(
                    cache,
                    self.manifest,
                    layout=plan.layout,
                    lanes=own_lanes,
                    depth_bytes=self.config.prefetch_bytes * len(own_lanes) // len(plan.lanes),
                    last_step=plan.last_step,
                )
                resources.callback(prefetcher.close)
                follow = prefetcher.follow
            source = SampleSource(reader, plan, follow=follow)
            pipeline = webdataset.DataPipeline(
                source,
                webdataset.map(partial(self.crop, tally=tally)),
                webdataset.map(self.mask) if self.mask is not None else None,
                *self.stages,
                partial(stack_batches, micro_batch=plan.micro_batch),
            )
            for batch in pipeline:
                yield Delivery(batch, tally.take(), source.take_damaged())
        yield Delivery(None, tally.take(), [])


@contextmanager
def deliveries_of(recipe: Recipe, *, pin_memory: bool) -> Iterator[Iterator[Delivery | Failure]]:
    """Gives the deliveries of all workers, in the order of the micro-batches; the workers end with the block."""
    with _stop_signals_held_back():
        deliveries = iter(_data_loader(recipe, pin_memory=pin_memory))
    try:
        yield deliveries
    finally:
        # torch ends workers when the iterator is collected, which the traceback of an error can put off, and which
        # takes 5 s a worker when it is the cycle collector that finds it; there is no public way
        if isinstance(deliveries, _MultiProcessingDataLoaderIter):
            deliveries._shutdown_workers()
            for worker in deliveries._workers:
                worker.kill()  # those that are stuck in a download; they hold back SIGTERM


@contextmanager
def _stop_signals_held_back() -> Iterator[None]:
    """Holds back, for good in every process that is started within, what asks the training process to stop.

    A scheduler signals all processes of a job step, a terminal its whole group. The step in progress can only be
    finished and saved if the workers, and the server that forks them, outlive that. They end with the stream, by kill,
    or within seconds of the training process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        # started first, because it leaves SIGINT and SIGTERM let through
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _data_loader(recipe: Recipe, *, pin_memory: bool) -> DataLoader:
    workers = recipe.config.workers
    in_processes = {
        "multiprocessing_context": _worker_context(),
        "prefetch_factor": recipe.config.prefetch_batches,
        "persistent_workers": True,
        "worker_init_fn": partial(_prepare_worker, _store_environment()),
    }
    return DataLoader(
        _Deliveries(recipe),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        # its own, so that the loader draws nothing from the generator of the training process
        generator=torch.Generator().manual_seed(0),
        **(in_processes if workers else {}),
    )


def default_cache_dir() -> Path:
    """Returns the folder for shards when the configuration names none: one for each user of the node."""
    return Path(tempfile.gettempdir()) / f"pupujepa-shards-{os.getuid()}"


def node_cache(config: StreamConfig, manifest: Manifest, *, tally: Tally) -> ShardCache | None:
    """Returns the cache for the set's shards, or None when they lie on this machine and are read in place."""
    store = open_store(config.url, policy=config.retries)
    if store.local_path() is not None:
        return None
    directory = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    return ShardCache(CacheConfig(directory, config.cache_bytes), store=store, namespace=manifest.digest, tally=tally)


class _Deliveries(IterableDataset):
    """The batches of whichever worker process iterates it."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe

    def __iter__(self) -> Iterator[Delivery | Failure]:
        worker = get_worker_info()
        try:
            yield from self.recipe.batches(*((worker.id, worker.num_workers) if worker else (0, 1)))
        except UserError as error:
            # handed over as it is: the data loader would raise its traceback as text in place of its sentence
            yield Failure(error)


def _worker_context() -> Any:
    """Returns the way workers start: not by fork, which S3 clients do not survive, with torch imported only once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "data.workers"])
    return context


def _store_environment() -> dict[str, str]:
    # the fork server's environment is the one of its own start, which may be older than the store's address and keys
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _prepare_worker(environment: dict[str, str], worker: int) -> None:
    leave_with_parent()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(environment)


def _as_is(delivery: Any) -> Any:
    return delivery
