"""Trainings on one device, each a job of tests/distributed/jobs.py; `python -m tests.gpu.trainings cuda ORDER.json`.

They run one after the other in a process of their own, because a start costs more than a small training. A job that
fails ends the process; the others then go on in a new one, so that a single fault on the first GPU hides nothing else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.distributed.launch import ROOT, environment

# by device: on a GPU a hang must leave time for the others, and compiling takes a minute; a CPU may be slow and busy
TIMEOUT_S = {"cuda": 240, "cpu": 900}


class Trainings:
    """What became of jobs, by name; a job that failed fails the tests that look at it."""

    def __init__(self, root: Path, said: dict[str, str]):
        self.root, self._said = root, said

    def of(self, name: str) -> Path:
        """Returns the run directory of a job that has succeeded."""
        assert not self._said[name], f"training {name} failed: {self._said[name]}"
        return self.root / name


def train(root: Path, jobs: dict[str, dict[str, Any]], *, device_type: str) -> Trainings:
    """Runs jobs {name: {"url", "overrides", ...}} in run directories below `root`."""
    left = [{"name": name, "run_dir": str(root / name), **job} for name, job in jobs.items()]
    said = {}
    while left:
        order = root / "order.json"
        order.write_text(json.dumps(left))
        output = _output_of([sys.executable, "-m", "tests.gpu.trainings", device_type, str(order)], device_type)
        ended = [job for job in left if Path(job["run_dir"]).with_suffix(".done").exists()]
        said |= {job["name"]: "" for job in ended}
        left = left[len(ended) :]
        if left:
            said[left.pop(0)["name"]] = output[-6000:]
    return Trainings(root, said)


def device_environment(device_type: str) -> dict[str, str]:
    """The environment of a process that trains on a device, whatever DeepSpeed was told in this one."""
    return environment() | {"DS_ACCELERATOR": device_type, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def _output_of(command: Sequence[str], device_type: str) -> str:
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=device_environment(device_type),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S[device_type],
        )
    except subprocess.TimeoutExpired as expired:
        return f"{str(expired.output or '')[-5000:]}\nit did not end within {TIMEOUT_S[device_type]} s"
    return done.stdout


def main(device_type: str, order: Path) -> int:
    """Runs the jobs of an order, and leaves a file beside each run that has ended."""
    from tests.distributed.jobs import main as run_jobs

    os.environ["DS_ACCELERATOR"] = device_type
    return run_jobs(
        json.loads(order.read_text()), device_type, told=lambda job: Path(job["run_dir"]).with_suffix(".done").touch()
    )


if __name__ == "__main__":
    from distributed.processes.process import end_process

    end_process(main(sys.argv[1], Path(sys.argv[2])))
