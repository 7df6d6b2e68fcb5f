"""The corpora of a stream opened by one process: a reader for each, and what brings shards of a store near in time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.order.mix import Mix
from data.reading.cache import ShardCache
from data.reading.prefetch import Prefetcher
from data.reading.reader import ShardReader
from data.reading.room import CacheConfig
from data.reading.tally import Tally
from data.store.store import open_store
from data.stream.config import StreamConfig, default_cache_dir
from data.stream.corpora import Corpora, StreamCorpus
from data.stream.source import ReadPlan


@contextmanager
def open_readers(
    config: StreamConfig, corpora: Corpora, plan: ReadPlan, *, tally: Tally
) -> Iterator[tuple[list[ShardReader], Callable[[int], None]]]:
    """Gives a reader for each corpus, and what to tell each step before it is read; closes all with the block.

    The worker of the plan looks after its share of the rank's lanes, and has a share of `prefetch_bytes` in proportion,
    which the corpora of an object store divide by their parts of the mix.
    """
    own_lanes = plan.lanes[plan.worker :: plan.num_workers]
    readers: list[ShardReader] = []
    follows: list[Callable[[int], None]] = []
    with ExitStack() as resources:
        for index, corpus in enumerate(corpora.members):
            cache = node_cache(config, corpus, tally=tally)
            reader = ShardReader(corpus.url, corpus.manifest, cache=cache, tally=tally)
            readers.append(reader)
            resources.callback(reader.close)
            if cache is None:
                continue
            part = config.prefetch_bytes * corpora.parts[index] // sum(corpora.parts)
            prefetcher = Prefetcher(
                cache,
                corpus.manifest,
                layout=plan.mix.layouts[index],
                lanes=own_lanes,
                depth_bytes=part * len(own_lanes) // len(plan.lanes),
                last_step=_last_step(plan, index, own_lanes),
            )
            resources.callback(prefetcher.close)
            follows.append(_in_steps_of(plan.mix, index, own_lanes, prefetcher.follow))

        def follow(step: int) -> None:
            for tell in follows:
                tell(step)

        yield readers, follow


def node_cache(config: StreamConfig, corpus: StreamCorpus, *, tally: Tally) -> ShardCache | None:
    """Returns the cache for a corpus's shards, or None when they lie on this machine and are read in place."""
    store = open_store(corpus.url, policy=config.retries)
    if store.local_path() is not None:
        return None
    directory = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    namespace = corpus.manifest.digest
    return ShardCache(CacheConfig(directory, config.cache_bytes), store=store, namespace=namespace, tally=tally)


def _last_step(plan: ReadPlan, corpus: int, lanes: Sequence[int]) -> int | None:
    return None if plan.last_step is None else plan.mix.corpus_steps(corpus, plan.last_step, lanes)[1]


def _in_steps_of(mix: Mix, corpus: int, lanes: Sequence[int], follow: Callable[[int], None]) -> Callable[[int], None]:
    """Returns `follow` of a corpus, to be told steps of the run."""
    return lambda step: follow(mix.corpus_steps(corpus, step, lanes)[0])
