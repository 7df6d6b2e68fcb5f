"""SLURM launches it: a real two-node cluster trains, and whatever stops a job, it is requeued and resumes exactly."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.data.shardsets import build_shard_set
from tests.integration.slurm_jobs import STEPS, Job, losses


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    build_shard_set(str(folder), num_frames=lambda number: 80 + number % 9)
    return folder


@pytest.fixture(scope="module")
def straight_losses(cluster, shards, tmp_path_factory):
    """The losses of a run on both nodes that nothing interrupts."""
    job = Job(cluster, tmp_path_factory.mktemp("straight")).train(shards)
    assert job.wait_for_end() == "COMPLETED", job.log
    return losses(job.run_dir)


def test_srun_trains_on_two_nodes(straight_losses):
    """One srun task per node makes one world of two ranks, trained to the end, every step logged once."""
    assert list(straight_losses) == list(range(STEPS))


def test_a_job_outlives_its_time_a_lost_rank_and_preemption(cluster, shards, straight_losses, tmp_path):
    """Each start ends in another way, the next one continues, and in the end the losses equal a straight run.

    First the job's time is nearly over. Then a rank is killed and the other one frozen, which must not hold the nodes.
    Then a job of higher priority takes the nodes.
    """
    job = Job(cluster | {"PUPUJEPA_WAIT_S": "12"}, tmp_path)
    # USR2 comes late, so that the run itself has to see the end coming
    job.train(shards, options=("--time=1", "--signal=USR2@1"))
    job.run_out_of_time()
    assert "asked to stop (2 of 2 ranks): saving step 1" in job.log
    job.kill_and_freeze()
    assert "a task was lost (exit code 137)" in job.log
    job.preempt(job.suspended_ranks())
    assert job.wait_for_end() == "COMPLETED", job.log
    assert "start 4, " in job.log
    assert losses(job.run_dir) == straight_losses


@pytest.mark.parametrize(
    ("code", "start", "requeued"),
    [(85, 99, True), (86, 1, True), (137, 1, True), (86, 20, False), (87, 1, False), (1, 1, False), (0, 1, False)],
)
def test_only_a_saved_job_and_a_lost_task_are_requeued(tmp_path, code, start, requeued):
    """85 always, 86 and signals for the first starts; never 87: a run that its guard stopped would collapse again."""
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": str(start - 1)}
    environ = job | {"PUPUJEPA_MAX_RESTARTS": "20", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = f"set -euo pipefail; source slurm/requeue.sh; run_or_requeue sh -c 'exit {code}'"
    ran = subprocess.run(["bash", "-c", script], check=False, cwd=Path(__file__).parents[2], env=environ)
    assert ran.returncode == (85 if requeued else code)
    assert asked.exists() is requeued
    if requeued:
        assert asked.read_text() == "requeue 7\n"


def test_dry_run_prints_the_launch(cluster, shards, tmp_path):
    """PUPUJEPA_DRY_RUN=1 shows what would be launched, and when it would have to end, and launches nothing."""
    job = Job(cluster | {"PUPUJEPA_DRY_RUN": "1"}, tmp_path).train(shards, options=("--time=30",), tasks_per_node=2)
    assert job.wait_for_end() == "COMPLETED"
    (launch,) = job.log.splitlines()
    start = time.mktime(time.strptime(job.shown("StartTime"), "%Y-%m-%dT%H:%M:%S"))
    assert f", start 1, 2 nodes, 4 tasks, ends {start + 1800:.0f}: " in launch
    assert ": srun --kill-on-bad-exit=0 --wait=300 python -m distributed train --preset demo" in launch
    assert not job.run_dir.exists()


def test_a_wrong_key_fails_the_job(cluster, tmp_path):
    """A misspelt key ends the job with its sentence and a failure, so that afterok dependencies do not run on."""
    job = Job(cluster, tmp_path).submit("train.sbatch", "--preset", "demo", "train.step=3")
    assert job.wait_for_end() == "FAILED"
    assert "unknown key train.step; did you mean train.steps?" in job.log
    assert "start 2" not in job.log
