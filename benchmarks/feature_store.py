"""The feature store at the size of MTG-Jamendo: memory and seconds of a rank, tiny features.

  python -m benchmarks feature_store                       435,648 slices of 55,525 tracks, as in the four MTG tasks
  python -m benchmarks feature_store --slices 20000        quicker

There is no audio and no encoder. The plan, its key, the files, the index and the reading are real. This measures the
cost that does not depend on the width of the features; the rest is width times the slices that are read at once. Peak
memory is that of this process above its start.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import arguments_of
from benchmarks.alternate import machine
from distributed.marble.datasets.corpus import LabelledCorpus, Slice
from distributed.marble.encoders.resolve import Chroma
from distributed.marble.features.features import feature_key, gather_features, plan_features
from distributed.marble.features.store import PartStore
from distributed.marble.tasks.tasks import Clips

SLICES, TRACKS = 435_648, 55_525
LAYERS, WIDTH = 2, 4
BATCH, BATCHES = 128, 100
MIB = 2**20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks feature_store", description=__doc__)
    parser.add_argument("--slices", type=int, default=SLICES)
    args = parser.parse_args(arguments_of("feature_store"))
    print("\n".join(report(args.slices)))


def report(count: int) -> list[str]:
    """Returns the lines of a table: each step with its seconds and the peak memory after it, in MiB."""
    lines = [f"{count} slices on {machine()}", "", "| step | s | peak above the start, MiB |", "|---|---|---|"]
    before = _peak_mib()

    @contextmanager
    def step(title: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        lines.append(f"| {title} | {time.perf_counter() - started:.1f} | {_peak_mib() - before:.0f} |")

    with tempfile.TemporaryDirectory() as folder:
        with step("plan: slices in their order"):
            per_track = -(-count // TRACKS)
            slices = [Slice(f"data/MTG/audio/{i // per_track:06d}.low.flac", i % per_track) for i in range(count)]
            plan = plan_features(Clips(30.0, None), slices, with_frames=[], frame_layers=0)
        with step("key: digest of everything that could change them"):
            key = feature_key(Chroma(), LabelledCorpus((), "simulated"), plan)
        store = PartStore(Path(folder), key)
        with step(f"{plan.num_parts} parts of {plan.slices_per_part} slices written"):
            for number in range(plan.num_parts):
                own = plan.part(number)
                start = number * plan.slices_per_part
                values = torch.arange(start, start + len(own), dtype=torch.float32)
                store.save(number, {"pooled": values[:, None, None].expand(-1, LAYERS, WIDTH).contiguous()}, own)
        with step("resumed: every part found whole"):
            assert store.numbers() == set(range(plan.num_parts))
            assert all(store.is_whole(number, plan.part(number)) for number in range(plan.num_parts))
        with step("gathered by (uid, slice)"):
            features = gather_features(store, plan)
        with step(f"{BATCHES} batches of {BATCH} slices drawn at random, read"):
            drawn = torch.randint(0, count, (BATCHES, BATCH), generator=torch.Generator().manual_seed(0))
            for rows in drawn.tolist():
                read = features.read([plan.slices[row] for row in rows], "pooled")
                assert read[0, :, 0, 0].tolist() == rows
    return lines


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
