"""Devices by name, and precision: bf16 where the hardware multiplies it, float32 elsewhere.

bf16 means autocast: parameters, optimiser and teacher stay float32. A processor without bf16 instructions emulates
them, and a matrix product takes up to a hundred times as long, so `auto` checks the hardware first.
"""

import logging
import time
from dataclasses import dataclass

import torch

from pupujepa.errors import UserError, require_known

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
AUTO = "auto"

# one layer of the demo's encoder on one crop; smaller products measure fixed costs, not the slowdown
_PROBED_SHAPE = (256, 128, 512)
_TRIALS = 3
_AMPERE = 8  # major compute capability of NVIDIA's first GPUs with bf16 tensor cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HardwareBf16:
    """Hardware support for bf16 on a device, and its evidence ("the processor has AVX512-BF16")."""

    supported: bool
    reason: str


@dataclass(frozen=True)
class ChosenPrecision:
    """A precision by name, "bf16" or "fp32", and the reason for the choice."""

    name: str
    reason: str


def usable_device(name: str | torch.device) -> torch.device:
    """Returns the device of a name such as cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: an unknown name, or a device that this machine or build of torch lacks.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # torch.device alone accepts devices that do not exist
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"device {str(name)!r} cannot be used here ({reason}); choose cpu, or cuda or mps where there is one"
        ) from error
    return device


def choose_precision(asked: str, device: torch.device) -> ChosenPrecision:
    """Resolves "auto" on a device; "bf16" and "fp32" stay as they are.

    Raises:
        UserError: an unknown name.
    """
    require_known("precision", asked, (AUTO, *PRECISIONS))
    if asked != AUTO:
        return ChosenPrecision(asked, "as asked")
    hardware = hardware_bf16(device)
    return ChosenPrecision("bf16" if hardware.supported else "fp32", hardware.reason)


def autocast_dtype(asked: str, device: torch.device) -> torch.dtype | None:
    """Returns the autocast dtype of "auto", "bf16" or "fp32"; None computes in float32."""
    return PRECISIONS[choose_precision(asked, device).name]


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Logs a warning with the measured slowdown if `precision` is bf16 and the device emulates it."""
    if precision != "bf16":
        return
    hardware = hardware_bf16(device)
    if not hardware.supported:
        logger.warning(
            "bf16 is emulated here (%s): a matrix product takes %.1f times as long as in float32; use fp32 or auto",
            hardware.reason,
            bf16_slowdown(device),
        )


def hardware_bf16(device: torch.device) -> HardwareBf16:
    """Returns the bf16 support that torch reports: GPUs from Ampere, CPUs with AVX512-BF16, AMX or ARM's."""
    if device.type == "cpu":
        return _cpu_bf16()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        supported = bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= _AMPERE
        return HardwareBf16(supported, f"{name} {'has' if supported else 'is older than Ampere and has no'} bf16 units")
    return HardwareBf16(False, f"bf16 on {device.type} is not tested")


def bf16_slowdown(device: torch.device) -> float:
    """Measures the time of a matrix product in bf16 relative to float32; below 1 if bf16 is faster."""
    return _seconds_of_product(torch.bfloat16, device) / _seconds_of_product(torch.float32, device)


def _cpu_bf16() -> HardwareBf16:
    # oneDNN respects ATEN_CPU_CAPABILITY, but also says yes to AVX512 without bf16: hence the checks below
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return HardwareBf16(False, f"the processor, used as {_capability()}, has no bf16 instructions")
    if _capability() not in ("AVX512", "AVX2", "DEFAULT"):
        return HardwareBf16(True, f"the processor has bf16 instructions ({_capability()})")
    if torch.cpu._is_amx_tile_supported():
        return HardwareBf16(True, "the processor has AMX")
    if torch.cpu._is_avx512_bf16_supported():
        return HardwareBf16(True, "the processor has AVX512-BF16")
    return HardwareBf16(False, f"the processor has {_capability()} but neither AVX512-BF16 nor AMX")


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _seconds_of_product(dtype: torch.dtype, device: torch.device) -> float:
    rows, inner, columns = _PROBED_SHAPE
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
    torch.mm(left, right)  # the first call picks and compiles a kernel
    seconds = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the call above only queues the kernel
        seconds.append(time.perf_counter() - started)
    return min(seconds)
