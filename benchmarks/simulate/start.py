"""Cost of a start with a large corpus, and of a crop: `python -m benchmarks simulate --start`.

Every rank reads and parses the manifest, takes its digest and hands it to its workers, each of which computes the
order of the epoch. Ranks of a node share none of this, so it is measured for one process.
"""

import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.alternate import machine
from benchmarks.simulate.corpus import imagined_manifest, write_shards
from benchmarks.simulate.setting import SAMPLE_FRAMES, Setting
from data.building.build import BuildConfig
from data.order.epoch import EpochOrder
from data.order.layout import Layout
from data.shards.manifest import from_json, to_json
from data.stream.config import StreamConfig
from data.stream.stream import Stream
from pupujepa.training.masks import MaskConfig

Result = TypeVar("Result")
PREDICTION = (
    "1 million hours: manifest 50 MB, parsed in 0.6 s, digest 0.5 s, order 0.05 s; a crop 1.5 ms of one core, of which "
    "a mask is 0.07 ms."
)


@dataclass(frozen=True)
class Start:
    """The start of one rank, before its first batch: bytes of the manifest and its pickle, and seconds."""

    shards: int
    manifest_bytes: int
    pickled_bytes: int
    parse_s: float
    digest_s: float
    pickle_s: float
    order_s: float

    @property
    def total_s(self) -> float:
        """Total seconds, with one pickle."""
        return self.parse_s + self.digest_s + self.pickle_s + self.order_s


def main(*, hours: Sequence[float]) -> None:
    """Prints both tables."""
    print(f"{machine()}\n\nprediction: {PREDICTION}\n")
    print(
        "| hours | shards | manifest, MB | parse, s | digest, s | to a worker, s | order, s | all, s per 1,000 shards |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for each in hours:
        start = measure_start(each)
        seconds = " | ".join(f"{s:.3f}" for s in (start.parse_s, start.digest_s, start.pickle_s, start.order_s))
        per_thousand = 1000 * start.total_s / start.shards
        print(f"| {each:,.0f} | {start.shards:,} | {start.manifest_bytes / 1e6:.1f} | {seconds} | {per_thousand:.4f} |")
    print(
        f"\none crop of 1,024 frames, read, checked, decoded, normalised and masked: {1e3 * crop_cpu_s():.2f} ms of CPU"
    )


def measure_start(hours: float) -> Start:
    """Measures the start of one process with a corpus of `hours`."""
    setting = Setting("base", gpus=512, hours=hours)
    samples = round(setting.samples / setting.shards)
    manifest = imagined_manifest(
        setting.shards,
        samples_per_shard=samples,
        frames=SAMPLE_FRAMES,
        shard_bytes=BuildConfig.shard_bytes,
        hours=hours,
    )
    text = to_json(manifest)
    parsed, parse_s = _timed(lambda: from_json(text))
    digest, digest_s = _timed(lambda: parsed.digest)
    pickled, dump_s = _timed(lambda: pickle.dumps(parsed))
    _, load_s = _timed(lambda: pickle.loads(pickled))

    def first_items() -> object:
        layout = Layout(
            digest,
            tuple(shard.samples for shard in parsed.shards),
            seed=0,
            lanes=setting.num_lanes,
            global_batch=setting.global_batch,
            window_shards=setting.window_shards,
        )
        return EpochOrder(layout, 0).lane_items(0, 0, layout.items_per_lane_step)

    _, order_s = _timed(first_items)
    return Start(setting.shards, len(text), len(pickled), parse_s, digest_s, dump_s + load_s, order_s)


def crop_cpu_s(*, shards: int = 4, samples_per_shard: int = 96) -> float:
    """Returns the CPU seconds of one crop in a worker: local shards, masks of the paper preset."""
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "train")
        manifest = write_shards(url, shards=shards, samples_per_shard=samples_per_shard, frames=SAMPLE_FRAMES)
        config = StreamConfig(url=url, global_batch=16, lanes=2, window_shards=2, workers=0)
        steps = shards * samples_per_shard // 16
        stream = Stream(
            config, manifest=manifest, rank=0, world_size=1, micro_batch=16, masks=MaskConfig(), total_steps=steps
        )
        batches = iter(stream)
        next(batches)
        started = time.process_time()
        crops = sum(len(batch.uids) for batch in batches)
        return (time.process_time() - started) / crops


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
