"""slurm/requeue.sh: the exit codes after which a job is requeued, and those that end it."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ended(tmp_path, code, *, starts=1):
    """Runs a command that ends with a code; returns the job's exit code and whether it was requeued."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > "$ASKED"\n')
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": str(starts - 1)}
    own = {"PUPUJEPA_MAX_RESTARTS": "3", "ASKED": str(tmp_path / "asked"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = f"set -euo pipefail; source slurm/requeue.sh; run_or_requeue sh -c 'exit {code}'"
    done = subprocess.run(["bash", "-c", script], check=False, cwd=ROOT, env=own | job, capture_output=True)
    asked = tmp_path / "asked"
    return done.returncode, asked.exists() and asked.read_text() == "requeue 7\n"


# 134 to 142: a rank that was killed by SIGABRT, SIGKILL, SIGSEGV or SIGALRM
@pytest.mark.parametrize("code", [85, 86, 134, 137, 139, 142, 143])
def test_a_job_that_can_continue_is_requeued(tmp_path, code):
    """Saved, or a rank or a data worker was lost: the same command continues from the newest checkpoint."""
    assert ended(tmp_path, code) == (85, True)


@pytest.mark.parametrize("code", [0, 1, 2, 87, 130])
def test_a_job_that_would_end_alike_is_not_requeued(tmp_path, code):
    """Finished, crashed, something to mend, stopped by the guard, ended by Ctrl-C."""
    assert ended(tmp_path, code) == (code, False)


@pytest.mark.parametrize(("code", "requeued"), [(85, True), (86, False), (137, False)])
def test_lost_ranks_are_limited_preemptions_are_not(tmp_path, code, requeued):
    """After PUPUJEPA_MAX_RESTARTS starts."""
    assert ended(tmp_path, code, starts=3) == (85 if requeued else code, requeued)
