"""Resuming within an epoch of ten million samples: seconds from the manifest to the first order.

  python -m benchmarks seek                                     10 million samples in 10,000 and in 50,000 shards
  python -m benchmarks seek --samples 100000 --shards 500       quicker

Only the manifest exists, not its shards. Everything from reading it to the list of samples of a step in the middle of
the fourth epoch is real, in a fresh process. The rest of a resume depends on the store: one index and one sample for
each row of the first micro-batch (`tests/data/stream/test_stream.py` counts the bytes).
"""

import argparse
import pickle
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

from benchmarks import arguments_of
from benchmarks.alternate import machine
from data.order.layout import lanes_of_rank
from data.order.mix import MixOrder
from data.shards.manifest import Manifest, ShardEntry, write_manifest
from data.stream.config import StreamConfig
from data.stream.corpora import read_corpora
from data.stream.stream import Stream, StreamState
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest

MIB = 2**20
AIM_S = 1.0
PREDICTION = (
    "50,000 shards are 13.5 MB of JSON: 0.2 s to parse, 0.1 s to digest, 60 MiB in memory (a dozen Python objects a "
    "shard); then 10 ms for the order (a sort of 50,000 words, and of one window for each lane served)"
)


@dataclass(frozen=True)
class Seek:
    """Seconds of each phase of a resume; bytes of the manifest on disk, in memory, and sent to a worker."""

    manifest_bytes: int
    resident_bytes: int
    recipe_bytes: int
    read_s: float
    digest_s: float
    seek_s: float
    order_s: float
    recipe_s: float
    items: int

    @property
    def total_s(self) -> float:
        """Seconds from the manifest on disk to the list of samples."""
        return self.read_s + self.digest_s + self.seek_s + self.order_s


def main() -> None:
    """Prints a row for every number of shards and ranks."""
    args = parse(arguments_of("seek"))
    print(f"{machine()}\n\nprediction: {PREDICTION}. Aim: below {AIM_S:g} s in all.\n")
    print(
        "| samples | shards | ranks | manifest, MB | in memory, MiB | read, s | digest, s | seek, s | order, s "
        "| **all, s** | to a worker: MB | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for shards in args.shards:
        for ranks in args.ranks:
            found = measure(args.samples, shards, ranks=ranks)
            times = [found.read_s, found.digest_s, found.seek_s, found.order_s]
            print(
                f"| {args.samples:,} | {shards:,} | {ranks} | {found.manifest_bytes / 1e6:.1f} "
                f"| {found.resident_bytes / MIB:.0f} | {' | '.join(f'{seconds:.3f}' for seconds in times)} "
                f"| **{found.total_s:.3f}** | {found.recipe_bytes / 1e6:.1f} | {found.recipe_s:.3f} |",
                flush=True,
            )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks seek")
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 1024])
    return parser.parse_args(arguments)


def measure(samples: int, shards: int, *, ranks: int) -> Seek:
    """Writes a synthetic manifest, and resumes one rank on it in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(folder, synthetic_manifest(samples, shards))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(_resume, folder, ranks).result()


def synthetic_manifest(samples: int, shards: int) -> Manifest:
    """Returns a manifest without shards, each of `samples / shards` samples or one more."""
    entries = []
    for shard in range(shards):
        held = samples // shards + (shard < samples % shards)
        digests = [sha256(f"{kind} {shard}".encode()).hexdigest() for kind in ("shard", "index")]
        entries.append(ShardEntry(f"shard-{shard:06d}.tar", held, held * 3072, held * 393_216, *digests))
    frontend = FrontendConfig()
    return Manifest(
        split="train",
        frontend=asdict(frontend),
        frontend_digest=frontend_digest(frontend),
        dtype="uint8",
        lo=LOG_FLOOR,
        hi=5.0,
        mean=-4.0,
        std=2.0,
        audio_hours=samples * 30.72 / 3600,
        tracks=samples // 8,
        shards=tuple(entries),
    )


def _resume(folder: str, ranks: int) -> Seek:
    config = StreamConfig(url=folder, lanes=max(64, ranks), global_batch=4 * max(64, ranks), window_shards=4)
    resident_before = _resident_bytes()
    marks = [time.perf_counter()]
    corpora = read_corpora(config)
    marks.append(time.perf_counter())
    digest = corpora.digest
    marks.append(time.perf_counter())
    resident_bytes = _resident_bytes() - resident_before
    stream = Stream(config, manifest=corpora, rank=ranks // 2, world_size=ranks, micro_batch=1)
    step = 3 * stream.steps_per_epoch + stream.steps_per_epoch // 2
    stream.seek(StreamState(digest, config.seed, 3, step))
    marks.append(time.perf_counter())
    items = MixOrder(stream.mix).step_draws(step, lanes_of_rank(config.lanes, ranks // 2, ranks))
    marks.append(time.perf_counter())
    recipe = pickle.dumps((corpora, stream.mix))
    pickle.loads(recipe)
    marks.append(time.perf_counter())
    times = [after - before for before, after in pairwise(marks)]
    manifest_bytes = (Path(folder) / "manifest.json").stat().st_size
    return Seek(manifest_bytes, resident_bytes, len(recipe), *times, items=len(items))


def _resident_bytes() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "the kernel reports no VmRSS; this benchmark needs Linux"
    return int(match[1]) * 1024
