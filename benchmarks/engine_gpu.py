"""The engine on GPUs: step time, share of the peak and memory by size, compiled or not, by ZeRO stage; one profile.

Ranks are all GPUs of this machine. Memory is torch's own peak beside that of `distributed plan`.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternate import machine
from benchmarks.engine_bare import OurEngine, experiment_of, inputs_of
from benchmarks.engine_launch import on_ranks
from distributed.engine import batch_sizes
from distributed.memory_fit import peak
from distributed.pace import peak_flops_of
from distributed.topology import Topology
from pupujepa.cost import training_cost

GIB = 2**30
SIZES = {"tiny": 64, "small": 64, "base": 64, "large": 32}
_ROWS = 20


def where() -> str:
    """Returns the machine in words."""
    return f"{torch.cuda.get_device_name()}; {machine()}" if torch.cuda.is_available() else machine()


def lines(folder: Path, *, quick: bool) -> Iterator[str]:
    """Measures every setting in turn and yields Markdown."""
    if not torch.cuda.is_available():
        yield "no GPU here"
        return
    ranks = torch.cuda.device_count()
    yield "| what | step, s | crops/s | MFU | peak, GiB | planned, GiB | off by |\n|---|---|---|---|---|---|---|"
    for name, crops in SIZES.items():
        for compiled in ("none", "inductor"):
            yield _row(_settings(name, crops, 1, compiled, quick=quick), ranks=ranks)
    for stage in (0, 1, 2, 3):
        yield _row(_settings("large", SIZES["large"], stage, "none", quick=quick), ranks=ranks)
    yield ""
    yield "Where a step of Large goes (stage 1, not compiled):\n"
    settings = _settings("large", SIZES["large"], 1, "none", quick=quick)
    yield f"```\n{on_ranks(profiled, settings, ranks=ranks)}\n```"


def measure(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    """Median seconds of a step on all ranks, and the most bytes allocated at once."""
    ours, inputs = _warm(settings, topology, device)
    torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(settings["steps"]):
        started = time.perf_counter()
        ours.update(inputs)
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return {"step_s": statistics.median(times), "peak_bytes": float(torch.cuda.max_memory_allocated(device))}


def profiled(settings: dict[str, Any], topology: Topology, device: torch.device) -> str:
    """The kernels of one step by their time on the GPU."""
    ours, inputs = _warm(settings, topology, device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        ours.update(inputs)
        torch.cuda.synchronize(device)
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=_ROWS)


def _warm(settings: dict[str, Any], topology: Topology, device: torch.device) -> tuple[OurEngine, Any]:
    """An engine that has made its first steps, and what it makes them with."""
    experiment = experiment_of(settings, ranks=topology.world_size)
    ours = OurEngine(experiment, topology, device)
    inputs = inputs_of(experiment, crops=experiment.engine.micro_batch, device=device)
    for _ in range(3):
        ours.update(inputs)
    torch.cuda.synchronize(device)
    return ours, inputs


def _settings(name: str, crops: int, stage: int, compiled: str, *, quick: bool) -> dict[str, Any]:
    overrides = [f"model={name}", f"engine.micro_batch={crops}", f"engine.zero_stage={stage}"]
    return {
        "name": f"{name}, {crops} crops, stage {stage}{', compiled' if compiled != 'none' else ''}",
        "preset": "paper",
        "overrides": [*overrides, f"engine.compile={compiled}"],
        "steps": 3 if quick else 20,
    }


def _row(settings: dict[str, Any], *, ranks: int) -> str:
    measured = on_ranks(measure, settings, ranks=ranks)
    experiment = experiment_of(settings, ranks=ranks)
    batch = experiment.stream.global_batch
    sizes = batch_sizes(batch, micro_batch=experiment.engine.micro_batch, world_size=ranks)
    planned = peak(experiment, sizes, world_size=ranks)[1].total
    flops = training_cost(experiment.model, experiment.masks, experiment.objective).total
    limit = ranks * peak_flops_of(torch.cuda.get_device_name(), precision="bf16")
    crops_per_s = batch / measured["step_s"]
    share = f"{crops_per_s * flops / limit:.1%}" if limit else "?"
    return (
        f"| {settings['name']}, {ranks} GPUs | {measured['step_s']:.4f} | {crops_per_s:.1f} | {share} | "
        f"{measured['peak_bytes'] / GIB:.2f} | {planned / GIB:.2f} | {planned / measured['peak_bytes'] - 1:+.1%} |"
    )
