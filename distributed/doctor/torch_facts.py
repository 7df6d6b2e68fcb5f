"""Torch's own account of this machine: bf16, GPUs that it can really use, and the libraries over which ranks meet.

Runs in a trial process (trial.py), because torch may not load, and a GPU that does not fit kills what touches it.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist

from pupujepa.precision import bf16_slowdown, hardware_bf16

_MIB = 2**20


def torch_facts() -> dict[str, Any]:
    """Returns what torch says of this machine, as plain JSON.

    Keys:
        torch, cuda: versions; cuda is None for a build without it. A build for ROCm counts as its own version.
        no_gpu: why CUDA cannot be used, in torch's words; "" if it can, or if torch says nothing.
        gpus: name, capability and memory_mib of each GPU, on each of which a sum was computed.
        bf16: supported, reason, and slowdown against float32 where it is not supported (else None).
        gloo, nccl: False or None if this build has none; nccl is a version.

    Raises:
        RuntimeError: a GPU is there and cannot compute.
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
            # an old driver is only told in a warning
            return (" ".join(str(caught[-1].message).split()) if caught else ""), []
    return "", [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    # raises where the build has no kernels for this GPU, or another process has it for itself
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
