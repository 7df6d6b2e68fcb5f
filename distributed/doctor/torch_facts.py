"""Torch's facts on this machine: bf16, GPUs that it can use, and communication libraries.

It runs in a trial process (trial.py), because torch may not load, and an unsupported GPU may kill the process.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist

from pupujepa.precision import bf16_slowdown, hardware_bf16

_MIB = 2**20


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
    no_gpu, gpus = _gpus()
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
        "nccl": _nccl_version(),
    }


def _gpus() -> tuple[str, list[dict[str, Any]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            # torch reports an old driver only in a warning
            return (" ".join(str(caught[-1].message).split()) if caught else ""), []
    return "", [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    # raises if the build has no kernels for this GPU, or another process holds it exclusively
    torch.ones(8, device=f"cuda:{index}").sum().item()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_mib": properties.total_memory // _MIB,
    }


def _nccl_version() -> str | None:
    if not (dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))
