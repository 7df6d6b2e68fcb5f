"""Launches training on real DeepSpeed ranks over gloo, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRESET = Path(__file__).with_name("small.yaml")
TIMEOUT_S = 900  # catches what hangs; a busy machine must not reach it


def environment() -> dict[str, str]:
    """The environment of a launch: ours without any launcher's variables, one thread per rank."""
    own = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "TORCHELASTIC", "WANDB"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        own.pop(name, None)
    # wandb waits 30 s for a process of its own, which a busy machine may need to start it
    return own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB__SERVICE_WAIT": "300"}


def torchrun(ranks: int) -> list[str]:
    """The start of a command that runs `ranks` processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


def train_command(run_dir: Path, url: str, *overrides: str, ranks: int = 1) -> list[str]:
    """The front door's command; plain python for one rank."""
    start = [sys.executable] if ranks == 1 else torchrun(ranks)
    words = ["-m", "distributed", "train", "--preset", str(PRESET), "--run-dir", str(run_dir), f"stream.url={url}"]
    return [*start, *words, *overrides]


def slowed(command: Sequence[str], *, from_step: int) -> tuple[list[str], dict[str, str]]:
    """A training command and its environment, slow from a step on: a fast machine cannot end it before it is killed."""
    module = command.index("distributed") - 1
    script = str(Path(__file__).with_name("slowed.py"))
    return [*command[:module], script, *command[module + 2 :]], environment() | {"SLOW_FROM": str(from_step)}


def launch(command: Sequence[str]) -> subprocess.CompletedProcess:
    """Runs a command to its end and returns it with its output."""
    return subprocess.run(
        command, check=False, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def losses(run_dir: Path) -> list[float]:
    """The losses of a run, by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def deterministic_rows(run_dir: Path) -> list[dict]:
    """All rows without what a clock measured, and without what workers read again when a run is resumed."""
    timed = ("crops_per_s", "step_s", "data_wait_s")
    measured = ("data/", "speed/", "memory/")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name not in timed and not name.startswith(measured)}
        for row in rows
    ]


def interrupted_copy(run_dir: Path, target: Path, *, keep_step: int) -> Path:
    """A copy of a finished run as if it had been killed after the checkpoint of `keep_step`."""
    shutil.copytree(run_dir, target)
    for path in (target / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > keep_step:
            shutil.rmtree(path)
    shutil.rmtree(target / "export")
    (target / "facts.json").unlink()
    return target
