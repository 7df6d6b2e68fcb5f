"""Memory of a training step against its plan: peaks of ranks, by moment of the step.

On a GPU the counter is torch.cuda.max_memory_allocated. On a CPU it is the sum of every allocation and release that
torch's CPU allocator reports to the profiler, from before the model is built. The peak of the process (VmHWM) is shown
too but is no substitute: it excludes memory that was never written, such as most of DeepSpeed's bucket, and includes
half a gigabyte of libraries. Blocks that gloo's threads release are not reported. They are blocks without an owner at
the end, and are subtracted when the operation that allocated them ends.
"""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.engine.bare import MOMENTUM, Inputs, OurEngine, experiment_of, inputs_of
from benchmarks.engine.launch import on_ranks
from distributed.engine.engine import batch_sizes
from distributed.plan.plan import step_config
from distributed.processes.topology import Topology
from pupujepa.cost.memory import peak_memory

MIB = 2**20
# released blocks return to the system, so VmHWM is what the process holds; this is slow
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_PHASE = "phase:"
# two steps: the optimiser's states are made in the first
_STEPS = 2


def measure(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    """Trains two steps; returns the second's peak bytes by phase, the maximum over ranks."""
    measured = (_on_gpu if device.type == "cuda" else _on_cpu)(settings, topology, device)
    most = torch.tensor(list(measured.values()), dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return dict(zip(measured, most.tolist(), strict=True))


def measure_each(settings: dict[str, Any], topology: Topology, device: torch.device) -> list[float]:
    """Returns the peak bytes of every setting in `settings["each"]`, measured by the same processes.

    Stage 3 comes last: DeepSpeed then replaces torch's linear function for the rest of the process.
    """
    peaks = []
    for one in settings["each"]:
        peaks.append(measure(one, topology, device)["peak"])
        # engines are circles of references, and would all stay
        gc.collect()
    return peaks


def compare(settings: dict[str, Any], *, ranks: int) -> str:
    """Measures a setting and returns a table row: planned and measured peak, and their difference."""
    experiment = experiment_of(settings, ranks=ranks)
    micro_batch = max(experiment.engine.micro_batch, 1)
    sizes = batch_sizes(experiment.stream.global_batch, micro_batch=micro_batch, world_size=ranks)
    measured = on_ranks(measure, settings, ranks=ranks, environ=_MALLOC)
    on_cpu = not torch.cuda.is_available()
    moment, planned = peak_memory(step_config(experiment, sizes, world_size=ranks, on_cpu=on_cpu))
    off = planned.total / measured["peak"] - 1
    others = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in measured.items() if name != "peak")
    name = f"{settings['name']}, stage {experiment.engine.zero_stage}, {ranks} ranks"
    return f"| {name} | {planned.total / MIB:,.0f} ({moment}) | {measured['peak'] / MIB:,.0f} | {off:+.1%} | {others} |"


HEADER = "| what | planned, MiB (when) | measured, MiB | off by | measured by phase, MiB |\n|---|---|---|---|---|"


def _on_gpu(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    experiment = experiment_of(settings, ranks=topology.world_size)
    ours = OurEngine(experiment, topology, device)
    inputs = inputs_of(experiment, crops=max(experiment.engine.micro_batch, 1), device=device)
    peaks: dict[str, float] = {}
    for _ in range(_STEPS):
        for name, work in _phases(ours, inputs):
            torch.cuda.reset_peak_memory_stats(device)
            work()
            torch.cuda.synchronize(device)
            peaks[name] = float(torch.cuda.max_memory_allocated(device))
    return {"peak": max(peaks.values()), **peaks, "reserved": float(torch.cuda.max_memory_reserved(device))}


def _on_cpu(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    experiment = experiment_of(settings, ranks=topology.world_size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function(f"{_PHASE}build"):
            ours = OurEngine(experiment, topology, device)
            inputs = inputs_of(experiment, crops=max(experiment.engine.micro_batch, 1), device=device)
        for _ in range(_STEPS):
            for name, work in _phases(ours, inputs):
                with record_function(f"{_PHASE}{name}"):
                    work()
    gc.collect()
    alive = {t.untyped_storage().data_ptr() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)}
    alive |= {p.grad.untyped_storage().data_ptr() for p in ours.step.parameters() if p.grad is not None}
    assert profiler.profiler is not None
    peaks = _peaks(profiler.profiler.kineto_results.experimental_event_tree(), alive)
    process = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"peak": max(peaks.values()), **peaks, "process": 1024.0 * int(process.split()[1])}


def _phases(ours: OurEngine, inputs: Inputs) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the phases of a step; the caller runs each before it asks for the next."""
    ours.set_rate()
    loss = []
    yield "forward", lambda: loss.append(ours.forward(inputs))
    yield "backward", lambda: ours.engine.backward(loss.pop())
    yield "update", ours.apply
    yield "teacher", lambda: ours.teacher.follow(MOMENTUM)


def _peaks(tree: Any, alive: set[int]) -> dict[str, float]:
    """Returns the most bytes held during the last phase of each name."""
    phases, events = _events(tree)
    held: dict[int, tuple[int, int]] = {}
    changes = []
    for start, pointer, size, operation_end in events:
        if size > 0:
            if pointer in held:
                # its release was not reported, and its address is in use again
                lost_end, lost = held[pointer]
                changes.append((min(lost_end, start), -lost))
            held[pointer] = (operation_end, size)
            changes.append((start, size))
        elif held.pop(pointer, None):
            changes.append((start, size))
    changes += [(end, -size) for pointer, (end, size) in held.items() if pointer not in alive]
    peaks: dict[str, float] = {}
    total, position = 0, 0
    changes.sort()
    for begin, end, name in phases:
        while position < len(changes) and changes[position][0] < begin:
            total += changes[position][1]
            position += 1
        peak = total
        while position < len(changes) and changes[position][0] <= end:
            total += changes[position][1]
            peak = max(peak, total)
            position += 1
        peaks[name] = float(peak)
    return peaks


def _events(nodes: Any) -> tuple[list[tuple[int, int, str]], list[tuple[int, int, int, int]]]:
    """Returns phases (start, end, name) and allocations (start, pointer, bytes, operation's end), in ns."""
    phases, allocations = [], []
    todo = list(nodes)
    while todo:
        node = todo.pop()
        todo += node.children
        if node.tag == _EventType.Allocation:
            fields, start = node.extra_fields, node.start_time_ns
            end = node.parent.end_time_ns if node.parent else start
            allocations.append((start, fields.ptr, fields.alloc_size, end))
        elif node.name.startswith(_PHASE):
            phases.append((node.start_time_ns, node.end_time_ns, node.name.removeprefix(_PHASE)))
    return sorted(phases), sorted(allocations)
