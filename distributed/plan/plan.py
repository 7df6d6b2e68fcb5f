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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from data.building.features import FeatureConfig
from data.order.layout import lanes_of_rank
from distributed.engine.engine import MAX_ZERO_STAGE, BatchSizes, batch_sizes, deepspeed_json, parameter_groups
from distributed.experiment import Experiment, load_experiment, preset_names
from distributed.run.speed import PEAK_BF16_TFLOPS
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import TrainingCost, count_parameters, training_cost
from pupujepa.cost.memory import StepConfig, peak_memory
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import AUTO, PRECISIONS
from pupujepa.training.ema import ema_momentum
from pupujepa.training.masks import STRATEGIES, strategy_probabilities
from pupujepa.training.objective import TrainingStep
from pupujepa.training.schedules import learning_rate

# usable fraction of device memory; the rest is for context, communication library and fragmentation
USABLE = 0.9
GIB, MEGA, GIGA, TERA = 2**30, 1e6, 1e9, 1e12
LONG_RUN_STEPS = 500_000
BYTES_OF_VALUE = {"uint8": 1, "float16": 2}
# points of a curve, and colours of the plot
_POINTS = 400
_LINE, _FAINT = "#1f5f8b", "#c9d8e4"
_SHADES = (_FAINT, "#6f9fc0", _LINE)


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
    device_bytes, nodes = device.memory_gb * GIGA, -(-gpus // args.gpus_per_node)
    lines = [
        *_step_lines(experiment, sizes, gpus=gpus, device_bytes=device_bytes),
        *_fit_lines(experiment, gpus=gpus, device_bytes=device_bytes),
        *_run_lines(experiment, crops_per_s, cost=cost, mfu=args.mfu, gpus=gpus),
    ]
    for dtype in BYTES_OF_VALUE:
        needed = store_bytes_per_s(experiment, crops_per_s, dtype=dtype) / MEGA
        title = "store" if dtype == "uint8" else ""
        lines.append(f"{title:<13}{needed:,.0f} MB/s of shards in {dtype}, {needed / nodes:,.0f} MB/s a node")
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
    batch = experiment.stream.global_batch
    per_rank = batch // world_size
    divisors = [d for d in range(per_rank, 0, -1) if per_rank % d == 0]
    for recomputed, stage in product((False, True), range(experiment.engine.zero_stage, MAX_ZERO_STAGE + 1)):
        # stage 3 gathers weights block by block, which cannot be compiled
        compiler = "none" if stage == MAX_ZERO_STAGE else experiment.engine.compile
        engine = replace(experiment.engine, zero_stage=stage, activation_checkpointing=recomputed, compile=compiler)
        tried, total = replace(experiment, engine=engine), 0
        for micro_batch in divisors:  # the largest first
            sizes = batch_sizes(batch, micro_batch=micro_batch, world_size=world_size)
            total = peak_memory(step_config(tried, sizes, world_size=world_size))[1].total
            if total <= USABLE * device_bytes:
                yield MemoryFit(stage, recomputed, micro_batch, total)
                break
        else:
            yield MemoryFit(stage, recomputed, 0, total)


def store_bytes_per_s(experiment: Experiment, crops_per_s: float, *, dtype: str) -> float:
    """Returns the bytes per second that the store must deliver; a sample is read whole."""
    values = FeatureConfig().part_frames * experiment.model.mel_bands
    return crops_per_s / experiment.stream.crops_per_sample * values * BYTES_OF_VALUE[dtype]


def _step_lines(experiment: Experiment, sizes: BatchSizes, *, gpus: int, device_bytes: float) -> list[str]:
    """Returns the model, the batch, and the memory of a GPU."""
    config, engine, parameters = experiment.model, experiment.engine, count_parameters(experiment.model)
    moment, memory = peak_memory(step_config(experiment, sizes, world_size=gpus))
    share = memory.total / device_bytes
    verdict = "fits" if share <= USABLE else "tight" if share < 1 else "DOES NOT FIT"
    precision = "bf16" if engine.precision == AUTO else engine.precision
    recomputed = ", blocks recomputed" if engine.activation_checkpointing else ""
    lines = [
        f"model        width {config.width}, depth {config.depth}; predictor {config.predictor_width} x "
        f"{config.predictor_depth}; {parameters.trained:,} trained parameters, teacher {parameters.encoder:,}",
        f"crop         {config.crop_frames} frames = {config.num_patches} patches ({config.grid_steps} steps x "
        f"{config.grid_bands} bands)",
        f"batch        {sizes.global_batch} crops = {sizes.micro_batch} x {sizes.accumulation} accumulation x {gpus} "
        f"GPUs",
        "",
        f"memory per GPU at its peak ({moment}), ZeRO stage {engine.zero_stage}, {precision}{recomputed}",
        *(f"  {name:<12}{value / GIB:8.2f} GiB" for name, value in vars(memory).items()),
        f"  {'total':<12}{memory.total / GIB:8.2f} GiB = {share:.0%} of {device_bytes / GIGA:g} GB: {verdict}",
    ]
    if engine.offload_optimizer:
        on_host = 16 * -(-parameters.trained // gpus)  # weights, gradients and two moments, float32
        lines.append(f"  {'on the host':<12}{on_host / GIB:8.2f} GiB for each GPU: the optimiser")
    return [*lines, ""]


def _fit_lines(experiment: Experiment, *, gpus: int, device_bytes: float) -> Iterator[str]:
    found = list(fits(experiment, world_size=gpus, device_bytes=device_bytes))
    kept, recomputed = ([fit for fit in found if fit.recomputed is again] for again in (False, True))
    per_gpu = experiment.stream.global_batch // gpus
    yield f"what fits: the largest engine.micro_batch (of {per_gpu} crops a GPU) by engine.zero_stage, and its GiB"
    yield f"  {'':<28}" + "".join(f"{f'stage {fit.zero_stage}':>16}" for fit in kept)
    for row, name in ((kept, "blocks kept"), (recomputed, "activation_checkpointing")):
        cells = (f"{fit.micro_batch or 'none'} ({fit.peak_bytes / GIB:.1f})" for fit in row)
        yield f"  {name:<28}" + "".join(f"{cell:>16}" for cell in cells)
    if not any(fit.micro_batch for fit in found):
        yield "  nothing fits: take more GPUs at stage 3, larger ones, engine.offload_optimizer=true or a smaller model"
    yield ""


def _run_lines(
    experiment: Experiment, crops_per_s: float, *, cost: TrainingCost, mfu: float, gpus: int
) -> Iterator[str]:
    """Yields the operations of a crop, and the hours of this run and of a long one."""
    yield f"operations   {cost.total / TERA:.3g} TFLOP per crop"
    for name, value in vars(cost).items():
        yield f"  {name:<12}{value / TERA:8.3f} TFLOP {value / cost.total:5.0%}"
    batch, own = experiment.stream.global_batch, experiment.train.steps - experiment.branch.step
    yield ""
    yield f"time         {crops_per_s:,.0f} crops/s at MFU {mfu:g}: {batch / crops_per_s:.3g} s per step"
    for steps in dict.fromkeys((own, LONG_RUN_STEPS)):
        hours = steps * batch / crops_per_s / 3600
        audio_hours = steps * batch * experiment.model.crop_frames / FrontendConfig().frames_per_s / 3600
        yield (
            f"             {steps:,} steps = {steps * batch:,} crops = {audio_hours:,.0f} h of audio in "
            f"{hours:,.1f} h = {hours * gpus:,.0f} GPU-hours"
        )


def plot_schedules(experiment: Experiment, path: Path) -> None:
    """Writes the picture; a branch starts at its first step, beside its parent's learning rate."""
    from matplotlib.figure import Figure

    total, horizon, first = experiment.train.steps, experiment.horizon_steps, experiment.branch.step
    steps = _some_of(first, total)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = rate, momentum, masks, decay = tuple(figure.subplots(2, 2).flat)
    for axis in axes:
        axis.set_xlabel("step")
        axis.set_xlim(first, max(total - 1, first + 1))
    if experiment.branch.step:
        whole = _some_of(0, horizon)
        rates = [learning_rate(s, horizon, experiment.schedule) for s in whole]
        rate.plot(whole, rates, color=_SHADES[1], linestyle="--", label="the run that it leaves")
        rate.legend(loc="lower left")
        rate.set_xlim(0, max(horizon, total) - 1)
    rates = [learning_rate(s, total, experiment.schedule, branch=experiment.branch) for s in steps]
    kind = "cooldown branch" if experiment.branch.step else experiment.schedule.kind
    for axis, values, title in (
        (rate, rates, f"learning rate ({kind})"),
        (momentum, [1 - ema_momentum(s, horizon, experiment.ema) for s in steps], "1 - momentum of the teacher"),
    ):
        axis.plot(steps, values, color=_LINE)
        axis.set_title(title)
        axis.set_ylim(0)
    shares = [strategy_probabilities(min(s / horizon, 1.0), experiment.masks) for s in steps]
    masks.stackplot(steps, list(zip(*shares)), labels=STRATEGIES, colors=_SHADES)
    masks.set_title(f"masking strategies, ratio {experiment.masks.ratio:g}")
    masks.legend(loc="lower left")
    with torch.device("meta"):
        step = TrainingStep(PupuJEPA(experiment.model), experiment.objective)
    for group, shade in zip(parameter_groups(step, experiment.optimizer.weight_decay), (_LINE, _SHADES[1])):
        count, weight_decay = sum(p.numel() for p in group["params"]), group["weight_decay"]
        what = "matrices" if weight_decay else "biases, norms, mask token, positions"
        decay.plot(steps, [weight_decay] * len(steps), color=shade, label=f"{count:,} in {what}")
    decay.set_title("weight decay (of the rate)")
    decay.set_ylim(-0.002, max(1.3 * experiment.optimizer.weight_decay, 0.01))
    decay.legend(loc="center right")
    figure.savefig(path, dpi=150)


def _some_of(first: int, end: int) -> list[int]:
    """Returns about _POINTS steps of [first, end), with the first and the last."""
    return sorted({first + round(i * (end - 1 - first) / _POINTS) for i in range(_POINTS + 1)})
