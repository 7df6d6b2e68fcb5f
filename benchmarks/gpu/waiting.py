"""Data wait of training on one GPU: a run from local shards, and the same steps without a stream.

The run is `python -m distributed train` with worker processes, pinned batches and its log; the other side is the same
trainer with its first batch repeated (`benchmarks.engine.trainer.Replay`).
"""

import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import trainer as engine_trainer
from benchmarks.engine.launch import RanksFailedError, on_ranks, run_within
from benchmarks.gpu.kept import Kept, Setting
from benchmarks.gpu.steps import TINY
from benchmarks.stream.corpus import CorpusConfig, make_corpus
from pupujepa.json_lines import read_rows

MODEL = "tiny"
# the training needs one core, and the thread that pins batches another
SPARE_CORES, MOST_WORKERS = 2, 14


@dataclass(frozen=True)
class Amounts:
    """Sizes of the run. The first `warm_steps` steps are not counted, because workers start there."""

    corpus: CorpusConfig
    crops: int
    lanes: int
    steps: int
    logged_every: int
    warm_steps: int


ON_GPU = Amounts(CorpusConfig("uint8", samples=1024, shard_bytes=4 << 20, epochs=0), 64, 16, 80, 10, 20)
SHOWN = Amounts(CorpusConfig("uint8", samples=32, shard_bytes=1 << 20, epochs=0), 4, 4, 6, 1, 0)


def measure(kept: Kept, *, seconds: float) -> dict[str, Any]:
    """Trains with the stream and without.

    Returns:
        crops_per_s and data_wait_fraction of the run after its first steps, and crops_per_s_without.

    Raises:
        RanksFailedError: one of them failed or took too long.
    """
    setting = kept.setting
    amounts = SHOWN if setting.tiny else ON_GPU
    shards, run = setting.out / "corpus", setting.out / "data-run"
    make_corpus(shards, amounts.corpus)
    shutil.rmtree(run, ignore_errors=True)
    overrides, workers = _overrides(setting, amounts), _workers(setting)
    settings = {
        "preset": "paper",
        "overrides": [*overrides, "stream.workers=0"],
        "shards": str(shards / "tar"),
        "run": str(setting.out / "replay-run"),
        "steps": amounts.steps // 2,
    }
    without = on_ranks(engine_trainer.speed, settings, ranks=1, environ=setting.environ, timeout_s=seconds / 2)
    code, said = run_within(
        [
            *(sys.executable, "-m", "distributed", "train", "--preset", "paper", "--run-dir", str(run)),
            *(f"stream.url={shards / 'tar'}", f"stream.workers={workers}", *overrides),
        ],
        timeout_s=seconds / 2,
        environ=setting.environ | {"OMP_NUM_THREADS": "1"},
    )
    if code:
        raise RanksFailedError(said[-5000:])
    found = of_rows(run, warm_steps=amounts.warm_steps)
    summary = (
        f"{found['crops_per_s']:.1f} crops/s from disk, {without:.1f} without a stream; "
        f"{found['data_wait_fraction']:.1%} of the time waiting, {workers} workers"
    )
    return {"summary": summary, "crops_per_s_without": without, "workers": workers, "crops": amounts.crops} | found


def of_rows(run: Path, *, warm_steps: int) -> dict[str, Any]:
    """Returns speed and share of waiting from the rows after the first steps."""
    rows = read_rows(run / "metrics.jsonl", growing=True)
    counted = [row for row in rows if "step_s" in row and row["step"] > warm_steps]
    step_s, wait_s = (statistics.fmean(row[name] for row in counted) for name in ("step_s", "data_wait_s"))
    return {
        "crops_per_s": statistics.fmean(row["crops_per_s"] for row in counted),
        "data_wait_fraction": wait_s / step_s,
        "steps": counted[-1]["step"] + 1,
    }


def _overrides(setting: Setting, amounts: Amounts) -> list[str]:
    return [
        f"model={MODEL}",
        *(TINY if setting.tiny else ()),
        f"engine.precision={'fp32' if setting.tiny else 'bf16'}",
        f"stream.global_batch={amounts.crops}",
        f"stream.lanes={amounts.lanes}",
        f"train.steps={amounts.steps}",
        f"telemetry.log_every={amounts.logged_every}",
        *("telemetry.wandb=disabled", "diagnostics.every=0", "probe.every_fraction=0", "checkpoint.every=1000000"),
        "guard.action=warn",
    ]


def _workers(setting: Setting) -> int:
    return 1 if setting.tiny else max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - SPARE_CORES))
