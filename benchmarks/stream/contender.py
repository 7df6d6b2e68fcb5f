"""One contender of the streaming benchmark in its own process: reads, checks samples, prints times.

  python -m benchmarks.stream.contender READING.json

Started by `benchmarks.stream.process`. Everything is imported before the clock starts; each line of its output is one
JSON object, a mark with the time, the processor seconds of the process and its descendants, or the result.
"""

import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor

from benchmarks.stream.corpus import CHECKED, CROP_FRAMES, HI, LO, MEAN, STD, Facts, read_facts

MODULES = {
    "pupujepa": "benchmarks.stream.ours",
    "webdataset": "benchmarks.stream.webdataset",
    "mosaicml": "benchmarks.stream.mosaicml",
    "litdata": "benchmarks.stream.litdata",
    "raw": "benchmarks.stream.limits",
}
LAYOUTS = {"pupujepa": "tar", "webdataset": "tar", "mosaicml": "mds", "litdata": "litdata", "raw": "tar"}


@dataclass(frozen=True)
class Reading:
    """Task of a contender.

    Args:
        contender: a key of MODULES.
        corpus: folder of the facts.
        url: of its format, a folder or s3://.
        cache_dir: an empty folder for what it downloads.
        workers: processes that make batches.
        epochs: number to read.
        pause_after: read this many batches, then save the state and the next batch's uids in `state`.
        state: file; without `pause_after`, resume from it and stop after one batch.
        way: client and connections of the raw limits.
    """

    contender: str
    corpus: str
    url: str
    cache_dir: str
    workers: int
    batch: int
    epochs: int = 1
    pause_after: int = 0
    state: str = ""
    way: str = ""


class Reader(Protocol):
    """Interface of a contender's reader."""

    def batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """Opens everything and yields (uids, mel [B, T, F] float32, normalised), epoch after epoch."""

    def state(self, batches: int) -> Any:
        """Returns the state after `batches` batches, as JSON."""

    def restore(self, state: Any) -> None:
        """Makes `batches` resume from a state; called before it."""


class Crop:
    """The peers' work on a sample: our crop, looked up in a table, and two operations in place."""

    def __init__(self, facts: Facts):
        self.starts = facts.starts
        scale = (HI - LO) / 255 if facts.config.dtype == "uint8" else 1.0
        self.scale, self.shift = scale / STD, ((LO if facts.config.dtype == "uint8" else 0.0) - MEAN) / STD

    def __call__(self, uid: str, stored_TF: Any) -> tuple[str, Tensor]:
        """Returns (uid, mel [T, F])."""
        start = self.starts[uid]
        crop_TF = torch.from_numpy(stored_TF[start : start + CROP_FRAMES])
        return uid, crop_TF.to(torch.float32).mul_(self.scale).add_(self.shift)


def loader_options(workers: int) -> dict[str, Any]:
    """Returns the options of every peer's data loader, equal to what ours does."""
    return {"num_workers": workers, **({"persistent_workers": True, "prefetch_factor": 2} if workers else {})}


def tree_cpu_s(pid: int) -> float:
    """Returns the processor seconds of a process and its descendants, including ended ones."""
    total = 0.0
    process = psutil.Process(pid)
    for member in [process, *process.children(recursive=True)]:
        try:
            total += sum(member.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def run(reading: Reading) -> None:
    """Reads, and writes marks and result to the standard output."""
    facts = read_facts(Path(reading.corpus))
    reader: Reader = import_module(MODULES[reading.contender]).open_reader(reading, facts)
    if reading.pause_after:
        _keep(reader, reading)
        return
    kept = json.loads(Path(reading.state).read_text()) if reading.state else None
    if kept:
        reader.restore(kept["state"])
    seen: Counter[str] = Counter()
    checksum, payload_bytes = 0.0, 0
    _mark("open")
    for number, (uids, mel_BTF) in enumerate(reader.batches(), start=1):
        if number == 1:
            _mark("first", samples=len(uids))
        seen.update(uids)
        checksum += float(mel_BTF[:, *CHECKED].double().abs().sum()) if isinstance(mel_BTF, Tensor) else 0.0
        payload_bytes += 0 if isinstance(mel_BTF, Tensor) else mel_BTF
        if kept:
            break
    _mark("last")
    result: dict[str, Any] = {"samples": sum(seen.values()), "checksum": checksum, "payload_bytes": payload_bytes}
    result["times_each"] = [len(seen), min(seen.values()), max(seen.values())] if seen else [0, 0, 0]
    if kept:
        result["continues"] = sorted(seen) == kept["next"]
    print(json.dumps(result), flush=True)


def _keep(reader: Reader, reading: Reading) -> None:
    """Writes the state after `pause_after` batches, and the uids of the next batch of an unbroken run."""
    batches = reader.batches()
    for _ in range(reading.pause_after):
        next(batches)
    state = reader.state(reading.pause_after)
    Path(reading.state).write_text(json.dumps({"state": state, "next": sorted(next(batches)[0])}))


def _mark(name: str, **facts: Any) -> None:
    at, cpu_s = time.monotonic(), tree_cpu_s(os.getpid())
    print(json.dumps({"mark": name, "at_s": at, "cpu_s": cpu_s, **facts}), flush=True)


if __name__ == "__main__":
    # peers return read-only arrays, about which torch warns
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(Reading(**json.loads(Path(sys.argv[1]).read_text())))
    sys.stdout.flush()
    # skips interpreter teardown, which is not measured and in which some libraries wait
    os._exit(0)
