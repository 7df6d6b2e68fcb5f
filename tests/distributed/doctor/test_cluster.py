"""SLURM: where this process is, by the variables of jobs that these tests invent."""

import pytest

from distributed.doctor.cluster import ask_squeue, slurm_finding
from distributed.doctor.findings import ABSENT, OK, WARNING

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_JOB_END_TIME": "10000"}


def judged(environ, *, now_s=1000.0, has_sbatch=True, squeue=""):
    return slurm_finding(environ, now_s=now_s, has_sbatch=has_sbatch, ask_time_left=lambda job: squeue)


def test_outside_a_job():
    """Jobs can be sent from here, or there is no SLURM."""
    assert judged({}).level == OK
    assert judged({}, has_sbatch=False).level == ABSENT


def test_a_task_of_srun():
    """Tasks, nodes and the time left."""
    found = judged(JOB | {"SLURM_STEP_ID": "0"})
    assert (found.level, found.found) == (OK, "job 7: 16 tasks on 2 nodes, started by srun, 2 h 30 min left")


def test_an_allocation_without_srun():
    """A training started like this would be one of sixteen, and refuses to start; a job of one task may."""
    found = judged(JOB)
    assert found.level == WARNING
    assert "not started by srun" in found.found
    assert found.remedy == "put srun before the command: srun python -m distributed train ..."
    assert judged(JOB | {"SLURM_NTASKS": "1"}).level == OK


def test_little_time_left():
    """A training saves a minute before the end, so ten minutes are hardly a part."""
    found = judged(JOB | {"SLURM_STEP_ID": "0"}, now_s=9_700.0)
    assert found.level == WARNING
    assert "0 h 5 min left" in found.found
    assert "--time" in found.remedy


@pytest.mark.parametrize(
    ("squeue", "words"),
    [("1-02:03:04", "26 h 3 min left"), ("UNLIMITED", "time left unknown"), ("", "time left unknown")],
)
def test_an_older_slurm_is_asked(squeue, words):
    """It does not write the end into the environment."""
    environ = {**JOB, "SLURM_STEP_ID": "0"}
    del environ["SLURM_JOB_END_TIME"]
    assert judged(environ, squeue=squeue).found.endswith(words)


def test_squeue_that_fails_is_no_answer(tmp_path, monkeypatch):
    """No squeue, one that fails, and one that answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_squeue("7") == ""
    for script, answer in (("exit 1", ""), ('echo "  $3 5:00"', "7 5:00")):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
        assert ask_squeue("7") == answer
