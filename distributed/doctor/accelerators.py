"""Findings on GPUs, NCCL, bf16 and the compiler, from torch's facts and nvidia-smi's rows."""

import csv
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING, Finding
from distributed.doctor.trial import ImportTrial

# share of a GPU's memory in use before a run starts; a desktop's display takes less
_MUCH_USED = 0.1
_QUERY = ("name", "driver_version", "memory.total", "memory.used")


@dataclass(frozen=True)
class SmiGpu:
    """A GPU in nvidia-smi's list; memory in MiB."""

    name: str
    driver: str
    memory_mib: int
    used_mib: int


def accelerator_findings(
    trial: ImportTrial | None, driver_gpus: Sequence[SmiGpu], *, aim: str, environ: Mapping[str, str]
) -> list[Finding]:
    """Judges GPUs, NCCL and bf16; `trial` is of TORCH_FACTS, None if torch does not load."""
    if trial is None:
        return [_not_tried(name) for name in ("GPUs", "NCCL", "bf16")]
    if trial.error:
        return [
            Finding("GPUs", FAILED, f"torch cannot compute here: {trial.error}", "install a torch built for this GPU"),
            _not_tried("NCCL"),
            _not_tried("bf16"),
        ]
    facts = trial.facts
    gpus = _usable_gpus(facts, driver_gpus) if facts["gpus"] else _no_gpus(facts, driver_gpus, aim, environ)
    bf16 = facts["bf16"]
    if bf16["supported"]:
        return [gpus, _collectives(facts), Finding("bf16", OK, f"supported by the hardware: {bf16['reason']}")]
    found = f"emulated: {bf16['reason']}; a matrix product takes {bf16['slowdown']:.1f} times as long as in float32"
    remedy = "leave engine.precision and --precision at auto, which takes float32 here"
    return [gpus, _collectives(facts), Finding("bf16", ABSENT, found, remedy)]


def compiler_finding(environ: Mapping[str, str], *, headers: Path | None = None) -> Finding:
    """Looks for a compiler and Python's headers, which only engine.compile=inductor needs."""
    compiler = shutil.which(environ.get("CXX", "g++"), path=environ.get("PATH"))
    header = (headers or Path(sysconfig.get_path("include"))) / "Python.h"
    missing = [] if compiler else ["C++ compiler"]
    missing += [] if header.is_file() else ["Python.h"]
    if not missing:
        return Finding("compiler", OK, f"{compiler}, only for engine.compile=inductor")
    return Finding(
        "compiler",
        ABSENT,
        f"no {' and no '.join(missing)}: only engine.compile=inductor needs it, which is off by default",
        "leave engine.compile=none, or install g++ and Python's headers (apt-get install g++ python3-dev)",
    )


def read_driver_gpus() -> list[SmiGpu]:
    """Reads the GPUs from nvidia-smi; returns none if the program is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # unknown memory ("[N/A]") is 0
    rows = [[cell.strip() for cell in row] for row in csv.reader(listed.splitlines()) if len(row) == len(_QUERY)]
    mib = {cell: int(cell) for row in rows for cell in row if cell.isdecimal()}
    return [SmiGpu(name, driver, mib.get(total, 0), mib.get(used, 0)) for name, driver, total, used in rows]


def _not_tried(name: str) -> Finding:
    return Finding(name, ABSENT, "not tried, because torch does not work here; see above")


def _no_gpus(facts: dict[str, Any], driver_gpus: Sequence[SmiGpu], aim: str, environ: Mapping[str, str]) -> Finding:
    if not driver_gpus:
        why = f" ({facts['no_gpu']})" if facts["no_gpu"] else ""
        return Finding("GPUs", ABSENT, f"no GPU{why}: everything runs on the CPU")
    there = f"{len(driver_gpus)} x {driver_gpus[0].name}, driver {driver_gpus[0].driver}"
    hidden = environ.get("CUDA_VISIBLE_DEVICES")  # may hide GPUs on purpose
    if hidden is not None and hidden.strip() in ("", "-1"):
        return Finding("GPUs", ABSENT, f"{there}, hidden by CUDA_VISIBLE_DEVICES={hidden}")
    if facts["cuda"] is None:
        reason, remedy = f"torch {facts['torch']} is built without CUDA", "install the torch of requirements.lock"
    else:
        reason = f"torch {facts['torch']} cannot use CUDA {facts['cuda']} ({facts['no_gpu'] or 'it does not say why'})"
        remedy = "update the driver, or install a torch built for an older CUDA"
    # a training would start on the CPU and take months
    return Finding("GPUs", FAILED if aim == "train" else WARNING, f"{there}, but {reason}", remedy)


def _usable_gpus(facts: dict[str, Any], driver_gpus: Sequence[SmiGpu]) -> Finding:
    gpus = facts["gpus"]
    names = sorted({gpu["name"] for gpu in gpus})
    memory_gib = min(gpu["memory_mib"] for gpu in gpus) / 1024
    driver = f", driver {driver_gpus[0].driver}" if driver_gpus else ""
    found = f"{len(gpus)} x {' and '.join(names)}, {memory_gib:.0f} GiB, CUDA {facts['cuda']}{driver}"
    if len(names) > 1:
        return Finding("GPUs", WARNING, found, "the slowest sets the pace: choose equal ones by CUDA_VISIBLE_DEVICES")
    used = [gpu for gpu in driver_gpus if gpu.used_mib > _MUCH_USED * gpu.memory_mib > 0]
    if used:
        most_gib = max(gpu.used_mib for gpu in used) / 1024
        found += f"; {len(used)} in use already, up to {most_gib:.0f} GiB"
        return Finding("GPUs", WARNING, found, "end the processes that nvidia-smi lists, or choose other GPUs")
    return Finding("GPUs", OK, found)


def _collectives(facts: dict[str, Any]) -> Finding:
    gpus = len(facts["gpus"])
    remedy = "install the torch of requirements.lock"
    if not gpus:
        if facts["gloo"]:
            return Finding("NCCL", ABSENT, "not needed without GPUs: ranks use gloo, which is here")
        return Finding("NCCL", FAILED, "this torch has no gloo, so ranks on CPUs cannot communicate", remedy)
    if facts["nccl"]:
        return Finding("NCCL", OK, f"{facts['nccl']}, for {gpus} GPU{'s' if gpus > 1 else ''}")
    return Finding("NCCL", FAILED, f"this torch has no NCCL, so ranks on {gpus} GPUs cannot communicate", remedy)
