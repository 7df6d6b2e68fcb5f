"""Trial imports in a child process, because a broken library may raise any error or kill its process.

`python -m distributed.doctor.trial STEP ...` runs the steps in order and reports on each. A step is a module to import,
or one of our checks. It catches nothing: the parent reads the error's last line, or the signal, and starts another
process for the steps after the failed one.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pupujepa.json_lines import parse_rows

ROOT = Path(__file__).parents[2]
TORCH_FACTS, DEEPSPEED_START = "torch facts", "deepspeed start"
# a cold network disk takes minutes for torch's libraries
TIMEOUT_S = 180.0

_ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)\b.*")


@dataclass(frozen=True)
class ImportTrial:
    """The outcome of one step: why it failed, "" if it did not, and its facts."""

    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def try_steps(
    steps: Sequence[str], *, first_needed: bool = False, timeout_s: float = TIMEOUT_S
) -> dict[str, ImportTrial]:
    """Runs the steps in child processes and returns the outcome of each that ran.

    Args:
        first_needed: stop if the first step fails.
        timeout_s: of one process; a slower one is killed, and no further step runs.
    """
    done: dict[str, ImportTrial] = {}
    while rest := [step for step in steps if step not in done]:
        reports, reason, timed_out = _run_child(rest, timeout_s)
        done.update({step: ImportTrial(facts=facts) for step, facts in reports.items()})
        if len(reports) == len(rest):
            break
        failed = rest[len(reports)]
        done[failed] = ImportTrial(error=reason)
        if timed_out or (first_needed and failed == steps[0]):
            break
    return done


def main(steps: Sequence[str]) -> None:
    """Runs the steps in the child, and writes one JSON line for each that succeeds."""
    # libraries print while they are imported: reports get a copy of standard output, and libraries get stderr
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for step in steps:
        facts = _CHECKS[step]() if step in _CHECKS else _import(step)
        print(json.dumps({"step": step, "facts": facts}), file=reports, flush=True)
    # without the interpreter's teardown, in which some libraries abort
    os._exit(0)


def _run_child(steps: Sequence[str], timeout_s: float) -> tuple[dict[str, dict[str, Any]], str, bool]:
    """Returns the facts of successful steps, the reason of the next failure, and True for a timeout."""
    command = [sys.executable, "-m", "distributed.doctor.trial", *steps]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        ran = subprocess.run(command, check=False, env=environment, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as expired:
        return _reports(expired.stdout or b""), f"did not end within {timeout_s:g} s", True
    return _reports(ran.stdout), _reason(ran.returncode, ran.stderr.decode(errors="replace")), False


def _reports(output: bytes) -> dict[str, dict[str, Any]]:
    # a killed process may leave half a line
    reports = parse_rows(output.decode(), origin="the trial", growing=True)
    return {report["step"]: report["facts"] for report in reports}


def _reason(code: int, stderr: str) -> str:
    """Returns why a child failed: the signal, or the error at the end of its traceback."""
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # a message may have several lines, and output may follow the traceback
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    if errors:
        return errors[-1]
    return ": ".join([f"the process ended with exit code {code}", *lines[-1:]])


def _import(module: str) -> dict[str, Any]:
    import_module(module)
    return {}


def _torch_facts() -> dict[str, Any]:
    from distributed.doctor.torch_facts import torch_facts

    return torch_facts()


def _deepspeed_start() -> dict[str, Any]:
    """Applies our settings to DeepSpeed, because they use names that DeepSpeed may change."""
    from distributed.engine.deepspeed_settings import leave_muon_uncompiled, leave_operators_uncompiled

    leave_operators_uncompiled()
    leave_muon_uncompiled()
    return {}


_CHECKS: dict[str, Callable[[], dict[str, Any]]] = {TORCH_FACTS: _torch_facts, DEEPSPEED_START: _deepspeed_start}

if __name__ == "__main__":
    main(sys.argv[1:])
