"""Check a machine before a run: one line a check, with a remedy for each that does not pass.

  python -m distributed doctor                                          before a training on this machine
  python -m distributed doctor --for demo --run-dir runs/demo           before `make demo`, which runs it first
  python -m distributed doctor --for embed                              before `python -m pupujepa embed`
  python -m distributed doctor --url s3://bucket/shards/train           the store too: reach, rights, clock, bandwidth
  python -m distributed doctor --url s3://bucket/checkpoints --write    the right to write there too
  srun --ntasks-per-node 1 python -m distributed doctor --json          on each node of a job

It checks Python and packages (torch, torchaudio and DeepSpeed load together, with the versions of requirements.lock);
bf16, GPUs, NCCL; cores, memory, disk, /dev/shm and open files, with the limits of containers; SLURM; the store of
--url.

A check is `ok`; `warning` if something may fail or be slow; `failed` if something needed is missing; `not here` if
something missing is not needed. Exit code 1 if a check failed, else 0. Without --url it takes a few seconds.
"""

import argparse
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from distributed.doctor.accelerators import accelerator_findings, compiler_finding, read_driver_gpus
from distributed.doctor.findings import (
    ABSENT,
    AIMS,
    OK,
    WARNING,
    Finding,
    as_json,
    as_text,
    doctor_exit_code,
    failure,
)
from distributed.doctor.machine import machine_findings
from distributed.doctor.packages import PYTHON_FIRST, find_weed, package_findings, python_finding, read_environment
from distributed.doctor.storage import store_findings
from distributed.doctor.trial import TORCH_FACTS, ImportTrial, try_steps
from distributed.processes.stop import NOTICE_S, duration_s
from pupujepa.errors import UserError

# a run saves and ends before its time is over, so a shorter job trains hardly at all
_SHORT_JOB_S = 10 * 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `doctor`."""
    parser.add_argument(
        "--for", dest="aim", choices=AIMS, default="train", help="task of the machine (default: %(default)s)"
    )
    parser.add_argument(
        "--run-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: %(default)s)"
    )
    parser.add_argument("--url", metavar="URL", help="a store to check too: s3://bucket/prefix, file:// or a path")
    parser.add_argument("--write", action="store_true", help="also write 4 MiB to --url and remove them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; returns 1 if something needed is missing.

    Raises:
        UserError: --write without --url, or an empty --url.
    """
    if args.url == "":
        raise UserError(
            "--url is empty, so no store would be checked; give one, such as s3://bucket/prefix, or drop it"
        )
    if args.write and not args.url:
        raise UserError("--write needs a store; add --url s3://bucket/prefix")
    findings = examine(args.aim, run_dir=args.run_dir, url=args.url, write=args.write)
    context = {"host": socket.gethostname(), "for": args.aim, "python": platform.python_version()}
    print(as_json(findings, context) if args.json else as_text(findings))  # noqa: T201 - the text is the product
    return doctor_exit_code(findings)


def examine(aim: str, *, run_dir: Path, url: str | None = None, write: bool = False) -> list[Finding]:
    """Returns all findings, in the order of the output."""
    python = python_finding(tuple(sys.version_info[:3]))
    with ThreadPoolExecutor(2) as pool:
        # imports take most of the time: two processes do them, while this one checks the machine
        packages = pool.submit(_packages_and_accelerators, aim, pool) if sys.version_info >= PYTHON_FIRST else None
        machine = machine_findings(aim, run_dir=run_dir)
        rest = [slurm_finding(os.environ, now_s=time.time(), has_sbatch=shutil.which("sbatch") is not None)]
        rest += [s3_server_finding()] if aim == "demo" else []
        rest += store_findings(url, write=write) if url else []
        return [python, *(packages.result() if packages else []), *machine, *rest]


def s3_server_finding() -> Finding:
    """Looks for the S3 server of the demo."""
    try:
        return Finding("S3 server", OK, str(find_weed()))
    except UserError as error:
        return failure("S3 server", error)


def ask_squeue(job: str) -> str:
    """Returns squeue's text for the time left of a job; "" if squeue fails."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%L"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def slurm_finding(
    environ: Mapping[str, str], *, now_s: float, has_sbatch: bool, ask_time_left: Callable[[str], str] = ask_squeue
) -> Finding:
    """Judges the SLURM job of this process at now_s since 1970, or the access to SLURM."""
    job = environ.get("SLURM_JOB_ID")
    if not job:
        if has_sbatch:
            return Finding("SLURM", OK, "sbatch is here, outside a job: slurm/train.sbatch starts one")
        return Finding("SLURM", ABSENT, "no sbatch on PATH, and not in a job")
    # an older SLURM does not write the end of the job into the environment
    end, left_s, left = environ.get("SLURM_JOB_END_TIME", ""), None, "time left unknown"
    with suppress(UserError):  # UNLIMITED, INVALID, or no answer
        left_s = float(end) - now_s if end.isdecimal() else duration_s(ask_time_left(job))
        left = "{} h {} min left".format(*divmod(max(0, int(left_s // 60)), 60))
    tasks, by_srun = environ.get("SLURM_NTASKS", "1"), "SLURM_STEP_ID" in environ
    started = "started by srun" if by_srun else "not started by srun"
    found = f"job {job}: {tasks} tasks on {environ.get('SLURM_NNODES', '1')} nodes, {started}, {left}"
    if not by_srun and tasks != "1":
        remedy = "put srun before the command: srun python -m distributed train ..."
        return Finding(
            "SLURM", WARNING, f"{found}; a training without srun would be one task, and refuses that", remedy
        )
    if left_s is not None and left_s < _SHORT_JOB_S:
        remedy = f"ask for more with --time; a training saves and ends {NOTICE_S:.0f} s before the end"
        return Finding("SLURM", WARNING, found, remedy)
    return Finding("SLURM", OK, found)


def _packages_and_accelerators(aim: str, pool: ThreadPoolExecutor) -> list[Finding]:
    environment = read_environment(aim)
    others = pool.submit(try_steps, environment.other_steps)
    with_torch = try_steps(environment.steps_with_torch, first_needed=True)
    trials = with_torch | others.result()
    facts: ImportTrial | None = with_torch.get(TORCH_FACTS)
    accelerators = accelerator_findings(facts, read_driver_gpus(), aim=aim, environ=os.environ)
    return [*package_findings(environment, trials, aim=aim), *accelerators, compiler_finding(os.environ)]
