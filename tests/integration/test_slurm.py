"""SLURM launches it: a real two-node cluster trains, is preempted, requeues, and resumes exactly."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.data.shardsets import build_shard_set
from tests.slurm_cluster import slurm_cluster

ROOT = Path(__file__).parents[2]
STEPS = 240
SMALL = (
    "model.crop_frames=64 model.width=32 model.depth=2 model.heads=2 model.predictor_width=32 "
    "model.predictor_depth=1 model.predictor_heads=2 objective.target_layers=1 stream.global_batch=8 stream.lanes=2 "
    f"stream.window_shards=2 train.steps={STEPS} checkpoint.every=40 diagnostics.every=0 telemetry.log_every=1 "
    "telemetry.wandb=disabled"
).split()
ON_BOTH_NODES = ("--partition=low", "--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a running cluster; n1 and n2 are names on this host, so the rendezvous address is given."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"MASTER_ADDR": "127.0.0.1", "PUPUJEPA_VENV": sys.prefix}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    build_shard_set(str(folder), num_frames=lambda number: 80 + number % 9)
    return folder


@pytest.fixture(scope="module")
def straight_losses(cluster, shards, tmp_path_factory):
    """The losses of a run on both nodes that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    submit(cluster, run_dir, shards, "--wait")
    return losses(run_dir)


def submit(cluster, run_dir, shards, *options):
    """Submits slurm/train.sbatch as a user would and returns the job's number."""
    log = run_dir.parent / "job.log"
    command = ["sbatch", "--parsable", *ON_BOTH_NODES, f"--output={log}", *options, "slurm/train.sbatch"]
    command += ["--preset", "demo", "--run-dir", str(run_dir), f"stream.url={shards}", *SMALL]
    done = subprocess.run(command, check=False, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    return int(done.stdout.split(";")[0].split()[0])


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for(condition, what, log, timeout_s=500.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)


def ranks_of(run_dir) -> list[psutil.Process]:
    """The training processes of a run directory, as the nodes have them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.name().startswith("python") and str(run_dir) in process.cmdline():
                found.append(process)
    return found


def was_signalled(rank: psutil.Process) -> bool:
    """Whether a stop signal waits for a process that is held, or woke it."""
    if rank.status() != psutil.STATUS_STOPPED:
        return True
    rows = Path(f"/proc/{rank.pid}/status").read_text().splitlines()
    (pending,) = (int(row.split()[1], 16) for row in rows if row.startswith("ShdPnd:"))
    return any(pending >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR2))


def test_srun_trains_on_two_nodes(straight_losses):
    """One srun task per node makes one world of two ranks, trained to the end, every step logged once."""
    assert sorted(straight_losses) == list(range(STEPS)) or sorted(straight_losses) == list(range(1, STEPS + 1))


def test_a_preempted_job_saves_requeues_and_resumes_exactly(cluster, shards, straight_losses, tmp_path):
    """A job of higher priority takes the nodes; ours saves, is requeued, and its losses equal a straight run."""
    run_dir, log = tmp_path / "run", tmp_path / "job.log"
    job = submit(cluster, run_dir, shards)
    wait_for((run_dir / "checkpoints" / "LATEST").exists, "the first checkpoint", log)
    # however fast the machine is, the run does not end before the scheduler has come to it
    ranks = ranks_of(run_dir)
    assert len(ranks) == 2, log.read_text()
    for rank in ranks:
        rank.suspend()
    urgent = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True, cwd=ROOT, env=cluster, capture_output=True, timeout=300)
    wait_for(lambda: all(was_signalled(rank) for rank in ranks), "the signal of the preemption", log)
    for rank in ranks:
        rank.resume()
    wait_for(lambda: "COMPLETED" in state(cluster, job), "the requeued job to complete", log)
    history = log.read_text()
    assert "start 2" in history, "the job was never requeued:\n" + history
    assert losses(run_dir) == straight_losses


def test_dry_run_prints_the_launch(cluster, shards, tmp_path):
    """PUPUJEPA_DRY_RUN=1 shows what would be launched and launches nothing."""
    submit(cluster | {"PUPUJEPA_DRY_RUN": "1"}, tmp_path / "run", shards, "--wait")
    printed = (tmp_path / "job.log").read_text()
    assert "start 1, 2 nodes, 2 tasks, ends " in printed
    assert ": srun --kill-on-bad-exit=0 --wait=300 python -m distributed train --preset demo" in printed
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_fails_the_job(cluster, tmp_path):
    """A misspelt key ends the job with its sentence and a failure, so that afterok dependencies do not run on."""
    log = tmp_path / "job.log"
    command = ["sbatch", "--wait", *ON_BOTH_NODES, f"--output={log}", "slurm/train.sbatch", "--preset", "demo"]
    ended = subprocess.run(
        [*command, "train.step=3"], check=False, cwd=ROOT, env=cluster, capture_output=True, timeout=300
    )
    assert ended.returncode != 0
    assert "unknown key train.step; did you mean train.steps?" in log.read_text()


def state(cluster, job):
    return subprocess.run(
        ["scontrol", "show", "job", str(job)], check=True, env=cluster, capture_output=True, text=True
    ).stdout
