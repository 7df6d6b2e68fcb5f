"""Jobs on the cluster of tests/slurm_cluster.py: submitted as a user would, watched, and struck by faults."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
DEADLINE_S = 500.0
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY")
STEPS = 240
SMALL = (
    "model.crop_frames=64 model.width=32 model.depth=2 model.heads=2 model.predictor_width=32 "
    "model.predictor_depth=1 model.predictor_heads=2 objective.target_layers=1 stream.global_batch=8 stream.lanes=4 "
    f"stream.window_shards=2 train.steps={STEPS} checkpoint.every=40 diagnostics.every=0 telemetry.log_every=1 "
    "telemetry.wandb=disabled"
).split()


@dataclass
class Job:
    """A job, with a folder of its own.

    Attributes:
        cluster: the environment of SLURM's commands.
        number: SLURM's, once it is submitted.
    """

    cluster: Mapping[str, str]
    folder: Path
    number: int = 0

    @property
    def run_dir(self) -> Path:
        """Of a training."""
        return self.folder / "run"

    @property
    def log(self) -> str:
        """What the job has said in all its starts."""
        path = self.folder / "job.log"
        return path.read_text() if path.exists() else ""

    def submit(self, script: str, *words: str, options: tuple[str, ...] = (), tasks_per_node: int = 1) -> "Job":
        """Submits slurm/SCRIPT for both nodes."""
        command = ["sbatch", "--parsable", "--partition=low", "--nodes=2", f"--ntasks-per-node={tasks_per_node}"]
        command += [f"--output={self.folder}/job.log", *options, f"slurm/{script}", *words]
        self.number = int(self._slurm(*command).split(";")[0])
        return self

    def train(self, shards: Path, *overrides: str, options: tuple[str, ...] = (), tasks_per_node: int = 1) -> "Job":
        """Submits slurm/train.sbatch."""
        words = ("--preset", "demo", "--run-dir", str(self.run_dir), f"stream.url={shards}", *SMALL, *overrides)
        return self.submit("train.sbatch", *words, options=options, tasks_per_node=tasks_per_node)

    def shown(self, field: str) -> str:
        """Returns a field of `scontrol show job`."""
        (value,) = re.findall(rf"\b{field}=(\S+)", self._slurm("scontrol", "show", "job", str(self.number)))
        return value

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Waits for something; fails with what the job said."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}:\n{self.log[-4000:]}"
            # not `sbatch --wait`, which asks less and less often, after a while twice a minute
            time.sleep(0.2)

    def wait_for_end(self) -> str:
        """Waits until the job is over for good; returns its state."""
        # by name, since on its way back into the queue a job is, for a moment, neither pending nor running
        self.wait(lambda: self.shown("JobState") in ENDS, "the end")
        return self.shown("JobState")

    def newest_checkpoint(self) -> str:
        """Returns what LATEST says, "" before the first one."""
        path = self.run_dir / "checkpoints" / "LATEST"
        return path.read_text() if path.exists() else ""

    def suspended_ranks(self, count: int = 2) -> list[psutil.Process]:
        """Waits for a checkpoint that is newer than now and holds the ranks; they are in the order of their nodes.

        However fast the machine is, the run does not end before what is to happen to it.
        """
        before = self.newest_checkpoint()
        self.wait(lambda: self.newest_checkpoint() != before, "a checkpoint")
        ranks = sorted(ranks_of(self.run_dir), key=lambda rank: int(rank.environ()["SLURM_PROCID"]))
        for rank in ranks:
            rank.suspend()
        assert len(ranks) == count, self.log
        return ranks

    def run_out_of_time(self) -> None:
        """Waits until the running start has been told that its time is nearly over, and gives the next one more."""
        self.wait(lambda: "start 1, " in self.log, "the first start")
        self._slurm("scontrol", "update", f"JobId={self.number}", "TimeLimit=UNLIMITED")
        self.wait(lambda: "saved before the end of its time" in self.log, "the end of the first start")

    def kill_and_freeze(self) -> None:
        """Kills one rank and leaves the other frozen."""
        killed, _ = self.suspended_ranks()
        killed.kill()
        self.wait(lambda: "a task was lost" in self.log, "the end of the frozen rank")

    def preempt(self, held: list[psutil.Process]) -> None:
        """Lets a job of higher priority take the nodes from processes that are held; they go on when they are told."""
        urgent = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        self._slurm(*urgent)
        self.wait(lambda: all(was_signalled(process) for process in held), "the signal of the preemption")
        for process in held:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _slurm(self, *command: str) -> str:
        done = subprocess.run(
            command, check=False, cwd=ROOT, env=dict(self.cluster), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def losses(run_dir: Path) -> dict[int, float]:
    """The losses of a run by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def ranks_of(folder: Path) -> list[psutil.Process]:
    """The processes of a run or an evaluation, as the nodes have them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.name().startswith("python") and str(folder) in process.cmdline():
                found.append(process)
    return found


def was_signalled(process: psutil.Process) -> bool:
    """Whether a stop signal waits for a process that is held, or woke or ended it."""
    try:
        if process.status() != psutil.STATUS_STOPPED:
            return True
        rows = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True
    (pending,) = (int(row.split()[1], 16) for row in rows if row.startswith("ShdPnd:"))
    return any(pending >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR2))
