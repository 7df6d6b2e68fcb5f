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
import warnings
from collections.abc import Sequence
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
        print(json.dumps({"step": step, "facts": _run_step(step)}), file=reports, flush=True)
    # without the interpreter's teardown, in which some libraries abort
    os._exit(0)


def torch_facts() -> dict[str, Any]:
    """Returns torch's facts on this machine, as plain JSON.

    Keys:
        torch, cuda: versions; cuda is None for a build without it, and ROCm's version for a build with that.
        no_gpu: why CUDA cannot be used, in torch's words; "" if it can, or if torch says nothing.
        gpus: name, capability and memory_mib of each GPU, each tested with a sum.
        bf16: supported, reason, and slowdown against float32 if it is not supported (else None).
        gloo, nccl: False or None if this build has none; nccl is a version.

    Raises:
        RuntimeError: a GPU cannot compute.
    """
    # imported here: the parent must not load torch
    import torch
    import torch.distributed as dist

    from pupujepa.precision import bf16_slowdown, hardware_bf16

    no_gpu, gpus, nccl = "", [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not torch.cuda.is_available() and caught:
            # torch reports an old driver only in a warning
            no_gpu = " ".join(str(caught[-1].message).split())
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        # raises if the build has no kernels for this GPU, or another process holds it exclusively
        torch.ones(8, device=f"cuda:{index}").sum().item()
        capability = f"{properties.major}.{properties.minor}"
        memory_mib = properties.total_memory // 2**20
        gpus.append({"name": properties.name, "capability": capability, "memory_mib": memory_mib})
    if gpus and dist.is_available() and dist.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    hardware = hardware_bf16(device)
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "no_gpu": no_gpu,
        "gpus": gpus,
        "bf16": {
            "supported": hardware.supported,
            "reason": hardware.reason,
            "slowdown": None if hardware.supported else bf16_slowdown(device),
        },
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": nccl,
    }


def _run_child(steps: Sequence[str], timeout_s: float) -> tuple[dict[str, dict[str, Any]], str, bool]:
    """Returns the facts of successful steps, the reason of the next failure, and True for a timeout."""
    command = [sys.executable, "-m", "distributed.doctor.trial", *steps]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    code, stderr, timed_out = 0, "", False
    try:
        environment = {**os.environ, "PYTHONPATH": path}
        ran = subprocess.run(command, check=False, env=environment, capture_output=True, timeout=timeout_s)
        output, code, stderr = ran.stdout, ran.returncode, ran.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired as expired:
        output, timed_out = expired.stdout or b"", True
    # a killed process may leave half a line
    reports = {row["step"]: row["facts"] for row in parse_rows(output.decode(), origin="the trial", growing=True)}
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # a message may have several lines, and output may follow the traceback
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    if timed_out:
        return reports, f"did not end within {timeout_s:g} s", True
    if code < 0:
        return reports, f"the process was killed by {signal.Signals(-code).name}", False
    return (
        reports,
        errors[-1] if errors else ": ".join([f"the process ended with exit code {code}", *lines[-1:]]),
        False,
    )


def _run_step(step: str) -> dict[str, Any]:
    if step == TORCH_FACTS:
        return torch_facts()
    if step == DEEPSPEED_START:
        # a training changes names that DeepSpeed may rename
        from distributed.engine.deepspeed_settings import leave_uncompiled

        leave_uncompiled()
    else:
        import_module(step)
    return {}


if __name__ == "__main__":
    main(sys.argv[1:])
