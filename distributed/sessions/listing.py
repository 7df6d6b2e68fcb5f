"""List and verify the checkpoints of a run: step, size, writer, and whether every byte is intact.

  python -m distributed checkpoints --run runs/demo
  python -m distributed checkpoints --run runs/large --step 200000        one of them

A damaged or unreadable checkpoint is shown with the reason, and the exit code is 1. `LATEST` marks the pointer's
checkpoint, `best` the best one by checkpoint.keep_best. Checkpoints in an object store are downloaded to be verified
(docs/checkpoints.md).
"""

import argparse
import tempfile
from pathlib import Path

from distributed.checkpoints.config import CheckpointConfig, best_step
from distributed.checkpoints.reading import Inspection, checkpoint_place, inspect
from distributed.experiment import Experiment
from distributed.run.directory import RunDirectory, RunDirectoryError
from distributed.run.log import read_metrics
from pupujepa.config import from_yaml

_HEADER = f"{'step':>9}  {'MiB':>9}  {'ranks':>5}  {'ZeRO':>4}  {'start':>5}  state"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `checkpoints`."""
    parser.add_argument("--run", dest="run_dir", required=True, metavar="DIR", type=Path, help="run directory")
    parser.add_argument("--step", type=int, help="verify only this checkpoint")


def run(args: argparse.Namespace) -> int:
    """Prints one line per checkpoint; returns 1 if one is damaged or cannot be verified."""
    directory = RunDirectory(args.run_dir)
    config = checkpoint_settings(directory)
    with tempfile.TemporaryDirectory(prefix="pupujepa-") as staging:
        place = checkpoint_place(directory, config.url, staging=Path(staging))
        steps = sorted(place.steps())
        if not steps or args.step not in (None, *steps):
            there = ", ".join(map(str, steps)) or "none"
            asked = "no checkpoint" if args.step is None else f"no checkpoint of step {args.step}"
            raise RunDirectoryError(f"{args.run_dir} has {asked}; there are: {there}")
        marks = {"LATEST": place.latest(), "best": _best(directory, config, among=steps)}
        found = [inspect(place, step) for step in (steps if args.step is None else [args.step])]
    lines = [_line(f, marks=[name for name, step in marks.items() if step == f.step]) for f in found]
    print("\n".join([_HEADER, *lines]))  # noqa: T201 - the table is the product
    return int(any(f.fault for f in found))


def checkpoint_settings(directory: RunDirectory) -> CheckpointConfig:
    """Reads the checkpoint section of a run's configuration.

    Raises:
        RunDirectoryError: the directory holds no run.
    """
    if not directory.config.is_file():
        raise RunDirectoryError(
            f"{directory.root} is not a run: it has no config.yaml; give the directory of a training run"
        )
    return from_yaml(Experiment, directory.config).checkpoint


def _best(directory: RunDirectory, config: CheckpointConfig, *, among: list[int]) -> int | None:
    return best_step(read_metrics(directory.metrics), config.keep_best, among=among) if config.keep_best else None


def _line(found: Inspection, *, marks: list[str]) -> str:
    told = (found.world_size, found.zero_stage, found.generation)
    ranks, stage, start = ("-" if value is None else str(value) for value in told)
    state = found.fault or " ".join(["whole", *marks])
    return f"{found.step:>9}  {found.size_bytes / 2**20:>9.1f}  {ranks:>5}  {stage:>4}  {start:>5}  {state}"
