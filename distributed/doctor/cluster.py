"""The check of SLURM: inside a job its tasks, srun and the time left; outside a job, sbatch."""

import shutil
import subprocess
from collections.abc import Callable, Mapping

from distributed.doctor.findings import ABSENT, OK, WARNING, Finding
from distributed.processes.stop import NOTICE_S, duration_s
from pupujepa.errors import UserError

# a run saves and ends before its time is over, so a shorter job trains hardly at all
_SHORT_S = 10 * 60.0
_SRUN = "put srun before the command: srun python -m distributed train ..."


def slurm_finding(
    environ: Mapping[str, str],
    *,
    now_s: float,
    has_sbatch: bool,
    ask_time_left: Callable[[str], str] | None = None,
) -> Finding:
    """Judges the job of this process, or the access to SLURM.

    Args:
        environ: SLURM's variables.
        now_s: seconds since 1970.
        ask_time_left: returns SLURM's text for the time left of a job, "" if unknown; asks squeue by default.
    """
    job = environ.get("SLURM_JOB_ID")
    if not job:
        if has_sbatch:
            return Finding("SLURM", OK, "sbatch is here, outside a job: slurm/train.sbatch starts one")
        return Finding("SLURM", ABSENT, "no sbatch on PATH, and not in a job")
    tasks, nodes = environ.get("SLURM_NTASKS", "1"), environ.get("SLURM_NNODES", "1")
    by_srun = "SLURM_STEP_ID" in environ
    left_s = _time_left_s(environ, job, now_s=now_s, ask=ask_time_left or ask_squeue)
    started = "started by srun" if by_srun else "not started by srun"
    found = f"job {job}: {tasks} tasks on {nodes} nodes, {started}, {_in_words(left_s)}"
    if not by_srun and tasks != "1":
        return Finding("SLURM", WARNING, f"{found}; a training without srun would be one task, and refuses that", _SRUN)
    if left_s is not None and left_s < _SHORT_S:
        remedy = f"ask for more with --time; a training saves and ends {NOTICE_S:.0f} s before the end"
        return Finding("SLURM", WARNING, found, remedy)
    return Finding("SLURM", OK, found)


def has_sbatch() -> bool:
    """Returns True if sbatch is on PATH."""
    return shutil.which("sbatch") is not None


def ask_squeue(job: str) -> str:
    """Returns squeue's text for the time left of a job; "" if squeue fails."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%L"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _time_left_s(environ: Mapping[str, str], job: str, *, now_s: float, ask: Callable[[str], str]) -> float | None:
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        return float(end) - now_s
    try:
        return duration_s(ask(job))
    except UserError:  # UNLIMITED, INVALID, or no answer
        return None


def _in_words(left_s: float | None) -> str:
    if left_s is None:
        return "time left unknown"
    minutes = max(0, int(left_s // 60))
    return f"{minutes // 60} h {minutes % 60} min left"
