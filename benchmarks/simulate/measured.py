"""The simulation against a real stream from a local S3 store with delayed answers.

A real `Stream` with two workers reads small shards through the tests' fault proxy, which delays every answer; the
training is a sleep of `STEP_S`. The simulation gets the same order (manifest digest and lengths of the same shards),
the injected latency, and one number of this machine: the seconds that a shard takes without injected latency.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.alternate import machine
from benchmarks.simulate.corpus import write_shards
from benchmarks.simulate.engine import simulate
from benchmarks.simulate.network import Latency, StoreModel
from benchmarks.simulate.outcome import Outcome, Site
from benchmarks.simulate.reading import Run
from data.reading.cache import ShardCache
from data.reading.room import CacheConfig
from data.shards.manifest import Manifest
from data.store.store import open_store
from data.stream.config import StreamConfig
from data.stream.stream import Stream
from examples.local_s3 import LocalS3
from tests.faultproxy import ALWAYS, Fault, FaultProxy

BUCKET = "simulated"
STEP_S = 0.1
# of each run; the workers start during these
WARM_STEPS = 16
SAMPLES_PER_SHARD, FRAMES = 16, 1024
CONFIG = StreamConfig(global_batch=8, lanes=2, window_shards=2, workers=2)
DEEP_BYTES = 1 << 30
# seconds of latency of each request, bytes fetched ahead of the windows at hand
CASES = ((0.0, DEEP_BYTES), *((latency_s, depth) for latency_s in (0.08, 0.2, 0.4) for depth in (0, DEEP_BYTES)))
PREDICTION = (
    "within 5 points of the measured share in every row; without prefetching the simulation is slightly low, because "
    "the two workers, the proxy and the server share two cores."
)


@dataclass(frozen=True)
class Measured:
    """A real run: its share of waiting after the warm-up, and the bytes that it read."""

    wait_share: float
    bytes_read: float


def main(*, steps: int, repeats: int) -> None:
    """Prints a row per case: measured shares and the simulated one."""
    print(f"{machine()}\n\nprediction: {PREDICTION}\n")
    with tempfile.TemporaryDirectory() as folder, store_with_proxy(Path(folder) / "store") as proxy:
        url = f"s3://{BUCKET}/train"
        shards = -(-steps * CONFIG.global_batch // SAMPLES_PER_SHARD)
        manifest = write_shards(url, shards=shards, samples_per_shard=SAMPLES_PER_SHARD, frames=FRAMES)
        shard_s = seconds_per_shard(url, manifest, Path(folder) / "calibration")
        print(f"a shard of {manifest.shards[0].bytes / 1e6:.1f} MB takes {shard_s:.3f} s without injected latency\n")
        print("| latency of a request, s | ahead | waiting, measured (runs) | waiting, simulated |\n|---|---|---|---|")
        for number, (latency_s, depth_bytes) in enumerate(CASES):
            proxy.inject(Fault("latency", times=ALWAYS, match=".tar", value=latency_s))
            config = replace(CONFIG, url=url, prefetch_bytes=depth_bytes)
            shares = []
            for repeat in range(repeats):
                cache = Path(folder) / f"cache-{number}-{repeat}"
                shares.append(measure(replace(config, cache_dir=str(cache)), manifest, steps=steps).wait_share)
            simulated = predict(config, manifest, steps=steps, latency_s=latency_s, shard_s=shard_s)
            predicted = simulated.wait_share(first_tick=WARM_STEPS)
            runs = ", ".join(f"{100 * share:.0f}" for share in shares)
            ahead = "all" if depth_bytes else "window at hand"
            median = 100 * statistics.median(shares)
            print(f"| {latency_s:g} | {ahead} | {median:.0f} % ({runs}) | {100 * predicted:.0f} % |", flush=True)


def measure(config: StreamConfig, manifest: Manifest, *, steps: int) -> Measured:
    """Takes `steps` batches of a real stream and sleeps after each."""
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=config.global_batch, total_steps=steps)
    started, waited_before_s = 0.0, 0.0
    for number, _ in enumerate(stream):
        if number == WARM_STEPS - 1:
            started, waited_before_s = time.perf_counter(), stream.counters()["wait_s"]
        time.sleep(STEP_S)
    counters = stream.counters()
    waited_s = counters["wait_s"] - waited_before_s
    return Measured(waited_s / (time.perf_counter() - started), counters["bytes_read"])


def predict(config: StreamConfig, manifest: Manifest, *, steps: int, latency_s: float, shard_s: float) -> Outcome:
    """Simulates the same run."""
    sizes = tuple(shard.bytes for shard in manifest.shards)
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=config.global_batch, total_steps=steps)
    layout = stream.mix.layouts[0]
    run = Run(layout, sizes, world_size=1, micro_batch=config.global_batch, steps=steps, workers=config.workers)
    store = StoreModel(Latency(latency_s), connection_bytes_per_s=statistics.mean(sizes) / shard_s)
    site = Site(
        store,
        tick_s=STEP_S,
        ranks_per_node=1,
        cache_bytes=config.cache_bytes,
        prefetch_batches=config.prefetch_batches,
        prefetch_bytes=config.prefetch_bytes,
    )
    return simulate(run, site)


def seconds_per_shard(url: str, manifest: Manifest, cache: Path) -> float:
    """Returns how long the cache takes to bring a shard and its index here, the first one aside."""
    shards = ShardCache(CacheConfig(cache, 1 << 34), store=open_store(url), namespace=manifest.digest)
    seconds = []
    for entry in manifest.shards[:16]:
        started = time.perf_counter()
        shards.open(entry).close()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


@contextmanager
def store_with_proxy(folder: Path) -> Iterator[FaultProxy]:
    """Runs a local S3 server and a proxy before it, and leads this process's clients to the proxy."""
    with LocalS3(folder, buckets=[BUCKET]) as server, FaultProxy(upstream_port=server.port) as proxy:
        endpoint = {"AWS_ENDPOINT_URL": proxy.endpoint_url, "AWS_ENDPOINT_URL_S3": proxy.endpoint_url}
        with _environment(server.environment() | endpoint):
            yield proxy


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
