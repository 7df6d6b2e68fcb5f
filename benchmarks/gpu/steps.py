"""Training steps on one GPU by size: seconds, share of the bf16 peak, planned memory, kernels.

The micro-batch is the largest power of two whose planned peak leaves a fifth of the free memory; if that is still
too large, it is halved. Every setting runs in its own process, so a failure affects no other.
"""

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.bare import OurEngine, experiment_of, inputs_of
from distributed.engine.engine import batch_sizes
from distributed.plan.plan import step_config
from distributed.processes.topology import Topology
from distributed.run.speed import peak_flops_of
from pupujepa.cost.cost import training_cost
from pupujepa.cost.memory import peak_memory

# share of the free memory; the rest is for workspaces of libraries and for errors of the plan
USABLE = 0.8
WARM_STEPS, STEPS, ROWS = 3, 10, 12
MOST_CROPS = 128
# a small model: a step takes a CPU a second
TINY = (
    *("model.crop_frames=64", "model.width=32", "model.heads=2", "model.depth=2"),
    *("model.predictor_width=32", "model.predictor_heads=2", "model.predictor_depth=2"),
)


@dataclass(frozen=True)
class StepSetting:
    """A setting to measure: model preset, ZeRO stage, compiler."""

    model: str
    stage: int = 1
    compiler: str = "none"

    def settings(self, *, tiny: bool) -> dict[str, Any]:
        """Returns it as JSON for `benchmarks.engine.launch.on_ranks`."""
        overrides = [f"model={self.model}", f"engine.zero_stage={self.stage}", f"engine.compile={self.compiler}"]
        precision = "engine.precision=fp32" if tiny else "engine.precision=bf16"
        return {
            "preset": "paper",
            "overrides": [*overrides, precision, *(TINY if tiny else ())],
            "most_crops": 2 if tiny else MOST_CROPS,
            "steps": 2 if tiny else STEPS,
            "profiled": self.stage == 1,
        }


def measure(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, Any]:
    """Runs steps with as many crops as fit, and returns the data of a table row."""
    crops = settings.get("crops") or largest_that_fits(settings, free_bytes=_free_bytes(device))
    too_many = []
    while True:
        try:
            return _measured(settings, topology, device, crops) | {"too_many_crops": too_many}
        except torch.OutOfMemoryError:
            if crops == 1:
                raise
        too_many.append(crops)
        crops //= 2
        gc.collect()
        torch.cuda.empty_cache()


def largest_that_fits(settings: dict[str, Any], *, free_bytes: float) -> int:
    """Returns the largest power of two of crops, up to `most_crops`, whose planned peak fits; at least 1."""
    crops = settings["most_crops"]
    while crops > 1 and planned_bytes(settings, crops, on_cpu=False) > USABLE * free_bytes:
        crops //= 2
    return crops


def planned_bytes(settings: dict[str, Any], crops: int, *, on_cpu: bool) -> int:
    """Returns the planned peak bytes of a rank with this micro-batch."""
    experiment = experiment_of(_with_crops(settings, crops), ranks=1)
    sizes = batch_sizes(crops, micro_batch=crops, world_size=1)
    return peak_memory(step_config(experiment, sizes, world_size=1, on_cpu=on_cpu))[1].total


def kernels(profiler: Any, *, rows: int = ROWS) -> list[dict[str, Any]]:
    """Returns the slowest kernels of a profile by device time, or operations without a GPU."""
    events = list(profiler.key_averages())
    on_gpu = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    timed = [(e.self_device_time_total if on_gpu else e.self_cpu_time_total, e.count, e.key) for e in on_gpu or events]
    total = sum(time_us for time_us, _, _ in timed) or 1.0
    first = sorted(timed, reverse=True)[:rows]
    return [{"name": name, "calls": n, "ms": us / 1e3, "share": us / total} for us, n, name in first]


def _with_crops(settings: dict[str, Any], crops: int) -> dict[str, Any]:
    return settings | {"overrides": [*settings["overrides"], f"engine.micro_batch={crops}"]}


def _free_bytes(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def _measured(settings: dict[str, Any], topology: Topology, device: torch.device, crops: int) -> dict[str, Any]:
    experiment = experiment_of(_with_crops(settings, crops), ranks=1)
    ours = OurEngine(experiment, topology, device)
    inputs = inputs_of(experiment, crops=crops, device=device)
    first_s, *_ = _timed(ours, inputs, device, WARM_STEPS)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step_s = statistics.median(_timed(ours, inputs, device, settings["steps"]))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    flops = training_cost(experiment.model, experiment.masks, experiment.objective).total
    limit = peak_flops_of(torch.cuda.get_device_name(device), precision="bf16") if device.type == "cuda" else 0.0
    return {
        "crops": crops,
        "first_step_s": first_s,
        "step_s": step_s,
        "crops_per_s": crops / step_s,
        "tflops": crops / step_s * flops / 1e12,
        "mfu": crops / step_s * flops / limit if limit else None,
        "peak_bytes": peak,
        "planned_bytes": planned_bytes(settings, crops, on_cpu=device.type == "cpu"),
        "kernels": _profiled(ours, inputs, device) if settings["profiled"] else [],
    }


def _timed(ours: OurEngine, inputs: Any, device: torch.device, steps: int) -> Iterator[float]:
    for _ in range(steps):
        started = time.perf_counter()
        ours.update(inputs)
        _wait(device)
        yield time.perf_counter() - started


def _profiled(ours: OurEngine, inputs: Any, device: torch.device) -> list[dict[str, Any]]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        ours.update(inputs)
        _wait(device)
    return kernels(profiler)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
