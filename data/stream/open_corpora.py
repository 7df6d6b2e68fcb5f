"""Readers, caches and prefetchers of a stream's corpora in one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.order.mix import Mix
from data.reading.cache import ShardCache
from data.reading.fetching import Tally
from data.reading.prefetch import Prefetcher
from data.reading.reader import ShardReader
from data.reading.room import CacheConfig
from data.store.store import open_store
from data.stream.config import StreamConfig, default_cache_dir, site_cache_dir
from data.stream.corpora import Corpora, StreamCorpus
from data.stream.source import ReadPlan
from pupujepa.durable import private_folder


@contextmanager
def open_readers(
    config: StreamConfig, corpora: Corpora, plan: ReadPlan, *, tally: Tally
) -> Iterator[tuple[list[ShardReader], Callable[[int], None]]]:
    """Yields a reader for each corpus, and a function to call with each step before it is read.

    The plan's worker prefetches its share of the rank's lanes, with that share of `prefetch_bytes`, which the corpora
    split by their parts of the mix.
    """
    own_lanes = plan.lanes[plan.worker :: plan.num_workers]  # empty if there are more workers than lanes
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
            for follow_corpus in follows:
                follow_corpus(step)

        yield readers, follow


def node_cache(config: StreamConfig, corpus: StreamCorpus, *, tally: Tally) -> ShardCache | None:
    """Returns the cache for a corpus's shards, or None if they are on this machine."""
    store = open_store(corpus.url, policy=config.retries)
    if store.local_path() is not None:
        return None
    chosen = Path(config.cache_dir) if config.cache_dir else site_cache_dir()
    directory = chosen or private_folder(default_cache_dir())
    namespace = corpus.manifest.digest
    return ShardCache(CacheConfig(directory, config.cache_bytes), store=store, namespace=namespace, tally=tally)


def _last_step(plan: ReadPlan, corpus: int, lanes: Sequence[int]) -> int | None:
    return None if plan.last_step is None else plan.mix.corpus_steps(corpus, plan.last_step, lanes)[1]


def _in_steps_of(mix: Mix, corpus: int, lanes: Sequence[int], follow: Callable[[int], None]) -> Callable[[int], None]:
    """Returns a function of steps of the run that calls `follow` with steps of the corpus."""
    return lambda step: follow(mix.corpus_steps(corpus, step, lanes)[0])
