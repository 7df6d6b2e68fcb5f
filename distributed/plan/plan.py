"""Memory, operations and hours of an experiment, without a GPU or data, in a few seconds.

  python -m distributed plan --preset paper model=large --nodes 8 --gpus-per-node 8 --device h100
  python -m distributed plan --preset paper model=giant engine.micro_batch=8 --nodes 16 --device a100-40gb
  python -m distributed plan --preset paper model=large engine.activation_checkpointing=true --gpus 4
  python -m distributed plan --preset robust model=base --plot schedules.png       what changes over the run, drawn
  python -m distributed plan --config runs/large-cooled/config.yaml --plot schedules.png        also of a branch

Memory is the peak over a step: float32 weights, gradients and AdamW's states as the ZeRO stage shards them, the float32
teacher, activations and DeepSpeed's buffers. These are closed formulas (pupujepa/cost/memory.py), within 15 % of
measured peaks; `python -m benchmarks engine --plan-memory` measures more of them. A tenth of the device stays free for
its context, the communication library and fragmentation. The plan lists settings that would fit.

Hours assume a fraction of the GPU's peak (--mfu); 0.35 is our guess for the larger models, small ones reach less. The
store reads whole samples, of which a third is used unless stream.crops_per_sample is 3.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.building.features import FeatureConfig
from data.order.ranks import lanes_of_rank
from distributed.engine.engine import MAX_ZERO_STAGE, BatchSizes, batch_sizes, deepspeed_json
from distributed.experiment import Experiment, load_experiment, preset_names
from distributed.plan.plot import plot_schedules
from distributed.run.speed import PEAK_BF16_TFLOPS
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import TrainingCost, count_parameters, training_cost
from pupujepa.cost.memory import StepConfig, peak_memory
from pupujepa.errors import UserError
from pupujepa.precision import AUTO, PRECISIONS

# usable fraction of device memory; the rest is for context, communication library and fragmentation
USABLE = 0.9
GIB, MEGA, GIGA, TERA = 2**30, 1e6, 1e9, 1e12
LONG_RUN_STEPS = 500_000
BYTES_OF_VALUE = {"uint8": 1, "float16": 2}


@dataclass(frozen=True)
class Device:
    """A GPU: memory in GB, and dense bf16 TFLOP/s."""

    memory_gb: float
    peak_tflops: float


@dataclass(frozen=True)
class MemoryFit:
    """The largest micro-batch that fits in a setting, 0 for none, and its peak bytes on a rank."""

    zero_stage: int
    recomputed: bool
    micro_batch: int
    peak_bytes: int


# from NVIDIA's data sheets
DEVICES = {
    "a10g": Device(24, PEAK_BF16_TFLOPS["A10G"]),
    "a100-40gb": Device(40, PEAK_BF16_TFLOPS["A100"]),
    "a100": Device(80, PEAK_BF16_TFLOPS["A100"]),
    "l40s": Device(48, PEAK_BF16_TFLOPS["L40S"]),
    "h100": Device(80, PEAK_BF16_TFLOPS["H100"]),
    "h200": Device(141, PEAK_BF16_TFLOPS["H200"]),
    "b200": Device(180, PEAK_BF16_TFLOPS["B200"]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `plan`."""
    parser.add_argument("--preset", action="append", default=[], metavar="NAME", help=", ".join(preset_names()))
    parser.add_argument("--config", type=Path, metavar="FILE", help="a whole experiment, such as a run's config.yaml")
    parser.add_argument("--nodes", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="ranks on each (default: %(default)s)")
    parser.add_argument("--gpus", type=int, help="ranks of all nodes together, in place of the two")
    parser.add_argument("--device", choices=sorted(DEVICES), default="h100", help="default: %(default)s")
    parser.add_argument("--gpu-memory-gb", type=float, help="of one GPU, in place of the device's")
    parser.add_argument("--peak-tflops", type=float, help="of one GPU, dense bf16, in place of the device's")
    parser.add_argument(
        "--mfu", type=float, default=0.35, help="share of the peak that is reached (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw learning rate, momentum, masks and weight decay over the run"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, and model=NAME")


def run(args: argparse.Namespace) -> int:
    """Prints the plan.

    Raises:
        UserError: numbers that no cluster has, or an experiment that contradicts itself.
    """
    gpus = args.nodes * args.gpus_per_node if args.gpus is None else args.gpus
    if min(gpus, args.nodes, args.gpus_per_node) < 1 or args.mfu <= 0:
        raise UserError(f"{args.nodes} nodes, {gpus} GPUs and --mfu {args.mfu:g} must all be positive")
    device = Device(
        args.gpu_memory_gb or DEVICES[args.device].memory_gb, args.peak_tflops or DEVICES[args.device].peak_tflops
    )
    experiment = load_experiment(args.preset, file=args.config, overrides=args.overrides)
    sizes = batch_sizes(experiment.stream.global_batch, micro_batch=experiment.engine.micro_batch, world_size=gpus)
    lanes_of_rank(experiment.stream.lanes, 0, gpus)
    cost = training_cost(experiment.model, experiment.masks, experiment.objective)
    crops_per_s = gpus * device.peak_tflops * TERA * args.mfu / cost.total
    device_bytes = device.memory_gb * GIGA
    lines = [
        *_size_lines(experiment, sizes, gpus),
        *_memory_lines(experiment, sizes, gpus=gpus, device_bytes=device_bytes),
        *_fit_lines(fits(experiment, world_size=gpus, device_bytes=device_bytes), experiment, gpus),
        *_cost_lines(cost),
        *_time_lines(experiment, crops_per_s, mfu=args.mfu, gpus=gpus),
        *_store_lines(experiment, crops_per_s, nodes=-(-gpus // args.gpus_per_node)),
    ]
    print("\n".join(lines))  # noqa: T201 - the text is the product
    if args.plot:
        plot_schedules(experiment, args.plot)
    return 0


def step_config(experiment: Experiment, sizes: BatchSizes, *, world_size: int, on_cpu: bool = False) -> StepConfig:
    """Returns the settings that decide the memory of a rank."""
    engine = experiment.engine
    trained = count_parameters(experiment.model).trained
    json = deepspeed_json(engine, experiment.optimizer, sizes, num_trained=trained)
    return StepConfig(
        experiment.model,
        experiment.masks,
        experiment.objective,
        PRECISIONS.get(engine.precision, torch.bfloat16),  # "auto" is bf16 on the GPUs that one plans for
        activation_checkpointing=engine.activation_checkpointing,
        crops=sizes.micro_batch,
        accumulates=sizes.accumulation > 1,
        zero_stage=engine.zero_stage,
        ranks=world_size,
        bucket=json["zero_optimization"]["reduce_bucket_size"],
        offload_optimizer=engine.offload_optimizer,
        shard_teacher=engine.teacher_is_sharded,
        on_cpu=on_cpu,
    )


def fits(experiment: Experiment, *, world_size: int, device_bytes: float) -> Iterator[MemoryFit]:
    """Yields the fit of each ZeRO stage from the given one, with blocks kept and recomputed.

    All fits have one global batch.
    """
    for recomputed in (False, True):
        for stage in range(experiment.engine.zero_stage, MAX_ZERO_STAGE + 1):
            # stage 3 gathers weights block by block, which cannot be compiled
            compiler = "none" if stage == MAX_ZERO_STAGE else experiment.engine.compile
            engine = replace(experiment.engine, zero_stage=stage, activation_checkpointing=recomputed, compile=compiler)
            yield _largest(replace(experiment, engine=engine), world_size=world_size, device_bytes=device_bytes)


def store_bytes_per_s(experiment: Experiment, crops_per_s: float, *, dtype: str) -> float:
    """Returns the bytes per second that the store must deliver; a sample is read whole."""
    values = FeatureConfig().part_frames * experiment.model.mel_bands
    return crops_per_s / experiment.stream.crops_per_sample * values * BYTES_OF_VALUE[dtype]


def _largest(experiment: Experiment, *, world_size: int, device_bytes: float) -> MemoryFit:
    engine = experiment.engine
    per_rank = experiment.stream.global_batch // world_size
    total = 0
    for micro_batch in (d for d in range(per_rank, 0, -1) if per_rank % d == 0):
        sizes = batch_sizes(experiment.stream.global_batch, micro_batch=micro_batch, world_size=world_size)
        total = peak_memory(step_config(experiment, sizes, world_size=world_size))[1].total
        if total <= USABLE * device_bytes:
            return MemoryFit(engine.zero_stage, engine.activation_checkpointing, micro_batch, total)
    return MemoryFit(engine.zero_stage, engine.activation_checkpointing, 0, total)


def _size_lines(experiment: Experiment, sizes: BatchSizes, gpus: int) -> list[str]:
    config = experiment.model
    parameters = count_parameters(config)
    return [
        f"model        width {config.width}, depth {config.depth}; predictor {config.predictor_width} x "
        f"{config.predictor_depth}; {parameters.trained:,} trained parameters, teacher {parameters.encoder:,}",
        f"crop         {config.crop_frames} frames = {config.num_patches} patches ({config.grid_steps} steps x "
        f"{config.grid_bands} bands)",
        f"batch        {sizes.global_batch} crops = {sizes.micro_batch} x {sizes.accumulation} accumulation x {gpus} "
        f"GPUs",
        "",
    ]


def _memory_lines(experiment: Experiment, sizes: BatchSizes, *, gpus: int, device_bytes: float) -> list[str]:
    moment, memory = peak_memory(step_config(experiment, sizes, world_size=gpus))
    share = memory.total / device_bytes
    verdict = "fits" if share <= USABLE else "tight" if share < 1 else "DOES NOT FIT"
    engine = experiment.engine
    precision = "bf16" if engine.precision == AUTO else engine.precision
    recomputed = ", blocks recomputed" if engine.activation_checkpointing else ""
    return [
        f"memory per GPU at its peak ({moment}), ZeRO stage {engine.zero_stage}, {precision}{recomputed}",
        *(f"  {name:<12}{value / GIB:8.2f} GiB" for name, value in vars(memory).items()),
        f"  {'total':<12}{memory.total / GIB:8.2f} GiB = {share:.0%} of {device_bytes / GIGA:g} GB: {verdict}",
        *([_on_host(experiment, gpus)] if engine.offload_optimizer else []),
        "",
    ]


def _on_host(experiment: Experiment, gpus: int) -> str:
    trained = count_parameters(experiment.model).trained
    # weights, gradients and two moments, float32
    return f"  {'on the host':<12}{16 * -(-trained // gpus) / GIB:8.2f} GiB for each GPU: the optimiser"


def _fit_lines(found: Iterable[MemoryFit], experiment: Experiment, gpus: int) -> Iterator[str]:
    rows: dict[bool, list[MemoryFit]] = {False: [], True: []}
    for fit in found:
        rows[fit.recomputed].append(fit)
    per_gpu = experiment.stream.global_batch // gpus
    yield f"what fits: the largest engine.micro_batch (of {per_gpu} crops a GPU) by engine.zero_stage, and its GiB"
    yield f"  {'':<28}" + "".join(f"{f'stage {fit.zero_stage}':>16}" for fit in rows[False])
    for recomputed, name in ((False, "blocks kept"), (True, "activation_checkpointing")):
        yield f"  {name:<28}" + "".join(f"{_one_fit(fit):>16}" for fit in rows[recomputed])
    if not any(fit.micro_batch for row in rows.values() for fit in row):
        yield "  nothing fits: take more GPUs at stage 3, larger ones, engine.offload_optimizer=true or a smaller model"
    yield ""


def _one_fit(fit: MemoryFit) -> str:
    return f"{fit.micro_batch or 'none'} ({fit.peak_bytes / GIB:.1f})"


def _cost_lines(cost: TrainingCost) -> list[str]:
    parts = vars(cost)
    return [
        f"operations   {cost.total / TERA:.3g} TFLOP per crop",
        *(f"  {name:<12}{value / TERA:8.3f} TFLOP {value / cost.total:5.0%}" for name, value in parts.items()),
        "",
    ]


def _time_lines(experiment: Experiment, crops_per_s: float, *, mfu: float, gpus: int) -> Iterator[str]:
    batch, own = experiment.stream.global_batch, experiment.train.steps
    begun = experiment.branch.step
    yield f"time         {crops_per_s:,.0f} crops/s at MFU {mfu:g}: {batch / crops_per_s:.3g} s per step"
    for steps in dict.fromkeys((own - begun, LONG_RUN_STEPS)):
        hours = steps * batch / crops_per_s / 3600
        audio_hours = steps * batch * experiment.model.crop_frames / FrontendConfig().frames_per_s / 3600
        yield (
            f"             {steps:,} steps = {steps * batch:,} crops = {audio_hours:,.0f} h of audio in "
            f"{hours:,.1f} h = {hours * gpus:,.0f} GPU-hours"
        )


def _store_lines(experiment: Experiment, crops_per_s: float, *, nodes: int) -> Iterator[str]:
    for dtype in BYTES_OF_VALUE:
        needed = store_bytes_per_s(experiment, crops_per_s, dtype=dtype)
        yield (
            f"{'store' if dtype == 'uint8' else '':<13}{needed / MEGA:,.0f} MB/s of shards in {dtype}, "
            f"{needed / nodes / MEGA:,.0f} MB/s a node"
        )
