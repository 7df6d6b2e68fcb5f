"""The training engine: overhead over a bare loop, checkpoints, resuming, scaling, planned memory.

  python -m benchmarks engine                         all of it on CPU ranks of one thread: about half an hour
  python -m benchmarks engine --overhead --checkpoints           some of it
  python -m benchmarks engine --plan-memory           peaks of ranks against `distributed plan`: ten minutes
  python -m benchmarks engine --quick ...             few repetitions: a smoke test

Both sides of the overhead run in one process, on the same batch, in turn: ours is Trainer's step with its reductions,
its guard and its log; the bare loop is forward, backward, clipping, AdamW and the teacher's average on the same model,
under DistributedDataParallel where there are two ranks.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import arguments_of
from benchmarks.engine import memory as engine_memory
from benchmarks.engine import trainer as engine_trainer
from benchmarks.engine.launch import on_ranks
from benchmarks.step import where
from benchmarks.stream.corpus import CorpusConfig, make_corpus
from distributed.engine.engine import ZERO_STAGES
from pupujepa.randomness import generator

PREDICTION = (
    "overhead 2 % at stage 1, since DeepSpeed's hooks and copies of the gradients are small beside "
    "0.3 s of computation; on two ranks the same, because DDP copies gradients too. A synchronous save of the demo "
    "model stalls for 0.3 s, a step; one in the background for a third of a step. Resuming takes 10 s, of which 8 are "
    "imports and rendezvous. Diagnostics cost 1.5 % at the demo's intervals. Two ranks reach 1.85 times the crops of "
    "one, losing to the memory bus. Planned memory is within 10 % of the measured peak everywhere, within 3 % at "
    "stages 1 and 2."
)
PARTS = ("overhead", "checkpoints", "resume", "diagnostics", "scaling", "plan-memory")
# name, overrides, steps a run, runs
OVERHEAD_SETTINGS = (
    ("demo, 16 crops", (), 10, 21),
    ("tiny, 2 crops", ("model=tiny", "stream.global_batch=2", "stream.lanes=2"), 1, 7),
)
MEMORY_SETTINGS = (
    ("demo, 8 crops, fp32", ("model=demo", "engine.micro_batch=8", "engine.precision=fp32")),
    ("tiny, 1 crop", ("model=tiny", "engine.micro_batch=1")),
    ("tiny, 2 crops, recomputed", ("model=tiny", "engine.micro_batch=2", "engine.activation_checkpointing=true")),
)


def main() -> None:
    """Prints the chosen parts as Markdown."""
    args = parse(arguments_of("engine"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{where(device)}\n\nprediction: {PREDICTION}\n")
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            print(f"### {part}\n")
            for line in PRINTED[part](Path(folder), quick=args.quick):
                print(line, flush=True)
            print()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads what follows `engine` on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engine", description=__doc__)
    for part in PARTS:
        parser.add_argument(f"--{part}", dest="parts", action="append_const", const=part, help=f"the part {part}")
    parser.add_argument("--quick", action="store_true", help="few repetitions, as a smoke test")
    args = parser.parse_args(argv)
    args.parts = args.parts or list(PARTS)
    return args


def overhead(folder: Path, *, quick: bool) -> Iterator[str]:
    """Compares our step with the bare loop at stage 1, on one and two ranks, for demo and Tiny."""
    yield "| what | AdamW of the bare loop | ours, s a step | bare loop, s a step | overhead, median | 95 % interval |"
    yield "|---|---|---|---|---|---|"
    for name, overrides, steps, runs in OVERHEAD_SETTINGS:
        for ranks in (1, 2):
            settings = setting(folder, f"overhead-{name}-{ranks}", "engine.zero_stage=1", *overrides)
            steps, runs = (2, 3) if quick else (steps, runs)
            by_kernel = on_ranks(engine_trainer.overhead, settings | {"steps": steps, "runs": runs}, ranks=ranks)
            for kernel, timed in by_kernel.items():
                ratios = np.array(timed["ours_s"]) / np.array(timed["peer_s"]) - 1
                ours_s, peer_s = (statistics.median(timed[side]) / steps for side in ("ours_s", "peer_s"))
                low, high = interval(ratios)
                yield (
                    f"| {name}, stage 1, {ranks} ranks | {kernel} | {ours_s:.4f} | {peer_s:.4f} | "
                    f"{np.median(ratios):+.1%} | {low:+.1%} to {high:+.1%} |"
                )


def checkpoints(folder: Path, *, quick: bool) -> Iterator[str]:
    """Measures how long a save delays the steps around it, on two ranks at stage 2."""
    settings = setting(folder, "checkpoints", "engine.zero_stage=2") | {"steps": 10 if quick else 40}
    found = on_ranks(engine_trainer.checkpoints, settings | {"runs": 1 if quick else 9}, ranks=2)
    yield "| save | stall, s | steps | of it the call, s | a step, s |\n|---|---|---|---|---|"
    for name, timed in found.items():
        stall_s, call_s = statistics.median(timed["stall_s"]), statistics.median(timed["call_s"])
        yield f"| {name} | {stall_s:.3f} | {stall_s / timed['step_s']:.1f} | {call_s:.3f} | {timed['step_s']:.3f} |"


def resume(folder: Path, *, quick: bool) -> Iterator[str]:
    """Measures the time from launch to the first resumed step, on two ranks at stage 2."""
    settings = setting(folder, "resume", "engine.zero_stage=2")
    on_ranks(engine_trainer.one_checkpoint, settings, ranks=2)
    times = [
        on_ranks(engine_trainer.resume, settings | {"launched": time.time()}, ranks=2) for _ in range(1 if quick else 5)
    ]
    yield "| what | median, s |\n|---|---|"
    for name in times[0]:
        yield f"| {name} | {statistics.median(t[name] for t in times):.2f} |"
    yield f"| all | {statistics.median(sum(t.values()) for t in times):.2f} |"


def diagnostics(folder: Path, *, quick: bool) -> Iterator[str]:
    """Measures the cost of diagnostics at the preset's intervals, on one rank."""
    settings = setting(folder, "diagnostics") | {"runs": 3 if quick else 41}
    found = on_ranks(engine_trainer.diagnostics, settings, ranks=1)
    yield f"- a step {found['step_s']:.4f} s, a logged one {found['logged_extra_s']:.4f} s more"
    yield f"- one round of diagnostics {found['look_s']:.3f} s"
    yield f"- together {found['share']:.2%} of the time"


def scaling(folder: Path, *, quick: bool) -> Iterator[str]:
    """Measures crops per second of one and two ranks in turn: 16 crops per step, and 8 per rank."""
    yield "| what | 1 rank, crops/s | 2 ranks, crops/s | ratio, median | [min, max] |\n|---|---|---|---|---|"
    for name, batch_of in (("16 crops a step", lambda ranks: 16), ("8 crops a rank", lambda ranks: 8 * ranks)):
        pairs = []
        for number in range(1 if quick else 5):
            speeds = []
            for ranks in (1, 2):
                batch = f"stream.global_batch={batch_of(ranks)}"
                settings = setting(folder, f"scaling-{batch_of(2)}-{number}-{ranks}", "engine.zero_stage=1", batch)
                settings |= {"steps": 5 if quick else 40}
                speeds.append(on_ranks(engine_trainer.speed, settings, ranks=ranks))
            pairs.append(speeds)
        ratios = sorted(two / one for one, two in pairs)
        one, two, ratio = (statistics.median(column) for column in (*zip(*pairs), ratios))
        yield f"| {name} | {one:.1f} | {two:.1f} | {ratio:.2f} | [{ratios[0]:.2f}, {ratios[-1]:.2f}] |"


def plan_memory(folder: Path, *, quick: bool) -> Iterator[str]:
    """Compares peaks with the plan: one and two ranks, every stage, with and without recomputation."""
    yield engine_memory.HEADER
    for name, overrides in MEMORY_SETTINGS[: 1 if quick else None]:
        for ranks, stage in product((1, 2), ZERO_STAGES):
            settings = {"name": name, "preset": "paper", "overrides": [*overrides, f"engine.zero_stage={stage}"]}
            yield engine_memory.compare(settings, ranks=ranks)


def setting(folder: Path, run: str, *overrides: str) -> dict[str, Any]:
    """Returns the preset demo over synthetic shards, with its own run directory."""
    shards = folder / "corpus"
    make_corpus(shards, CorpusConfig("uint8", samples=128, shard_bytes=4 << 20, epochs=0))
    fixed = ["stream.workers=0", "guard.action=warn"]
    return {
        "preset": "demo",
        "overrides": [*fixed, *overrides],
        "shards": str(shards / "tar"),
        "run": str(folder / run),
    }


def interval(values: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """Returns a 95 % bootstrap interval of the median."""
    random = generator(0, "engine")
    medians = np.median(random.choice(values, (draws, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


PRINTED = {
    "overhead": overhead,
    "checkpoints": checkpoints,
    "resume": resume,
    "diagnostics": diagnostics,
    "scaling": scaling,
    "plan-memory": plan_memory,
}
