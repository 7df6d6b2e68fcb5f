"""Memory, operations and hours of an experiment, before it waits in a queue. Needs no GPU, no data and a few seconds.

  python -m distributed plan --preset large --gpus 64
  python -m distributed plan --preset giant engine.zero_stage=2 engine.micro_batch=8 --gpus 128 --gpu-memory-gb 80
  python -m distributed plan --preset robust model=base --gpus 8 --plot schedules.png

Memory: float32 parameters, gradients and AdamW states sharded as the ZeRO stage says, the replicated float32 teacher,
and what the backward pass keeps, found by tracing the training step. Buffers of the communication library and
fragmentation come on top: leave a tenth free. Hours assume a share of the GPU's peak (MFU) that you state; 0.35 is our
guess for the larger models, small ones reach less.
"""

import argparse
from pathlib import Path

from distributed.engine import PRECISIONS, BatchSizes, batch_sizes
from distributed.experiment import Experiment, load_experiment, preset_names
from pupujepa.cost import TrainingCost, count_parameters, training_cost
from pupujepa.ema import ema_momentum
from pupujepa.masks import STRATEGIES, strategy_probabilities
from pupujepa.memory import Memory, memory_per_rank
from pupujepa.schedules import learning_rate
from pupujepa.tracing import StepConfig, saved_bytes

GIB, TERA = 2**30, 1e12
H100_BF16_TFLOPS = 989.0
_PLOTTED_STEPS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `plan`."""
    parser.add_argument("--preset", action="append", default=[], metavar="NAME", help=", ".join(preset_names()))
    parser.add_argument("--config", type=Path, metavar="FILE", help="a whole experiment, such as a run's config.yaml")
    parser.add_argument("--gpus", type=int, default=8, help="ranks (default: %(default)s)")
    parser.add_argument("--gpu-memory-gb", type=float, default=80.0, help="of one GPU (default: %(default)s)")
    parser.add_argument(
        "--peak-tflops", type=float, default=H100_BF16_TFLOPS, help="dense bf16 (default: %(default)s, H100)"
    )
    parser.add_argument(
        "--mfu", type=float, default=0.35, help="share of the peak that is reached (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw learning rate, momentum and masks over the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, and model=NAME")


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    experiment = load_experiment(args.preset, file=args.config, overrides=args.overrides)
    sizes = batch_sizes(experiment.stream.global_batch, micro_batch=experiment.engine.micro_batch, world_size=args.gpus)
    memory = memory_per_gpu(experiment, sizes, world_size=args.gpus)
    cost = training_cost(experiment.model, experiment.masks, experiment.objective)
    speed = args.gpus * args.peak_tflops * TERA * args.mfu / cost.total
    lines = [*_size_lines(experiment, sizes, args.gpus), *_memory_lines(memory, experiment, args.gpu_memory_gb)]
    lines += _cost_lines(cost)
    lines += _time_lines(experiment, speed, mfu=args.mfu)
    print("\n".join(lines))  # noqa: T201 - the text is the product
    if args.plot:
        plot_schedules(experiment, args.plot)
    return 0


def memory_per_gpu(experiment: Experiment, sizes: BatchSizes, *, world_size: int) -> Memory:
    """Memory of one rank, without the communication library's buffers."""
    engine = experiment.engine
    kept = saved_bytes(
        StepConfig(
            experiment.model,
            experiment.masks,
            experiment.objective,
            PRECISIONS[engine.precision],
            activation_checkpointing=engine.activation_checkpointing,
        )
    )
    return memory_per_rank(
        count_parameters(experiment.model),
        zero_stage=engine.zero_stage,
        ranks=world_size,
        activation_bytes=kept.constant + sizes.micro_batch * kept.per_crop,
    )


def plot_schedules(experiment: Experiment, path: Path) -> None:
    """Draws what changes over the run."""
    from matplotlib.figure import Figure

    total = experiment.train.steps
    steps = sorted({round(i * (total - 1) / _PLOTTED_STEPS) for i in range(_PLOTTED_STEPS + 1)})
    curves = (
        ("learning rate", [learning_rate(s, total, experiment.schedule) for s in steps]),
        ("1 - EMA momentum", [1 - ema_momentum(s, total, experiment.ema) for s in steps]),
    )
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (title, values) in zip(axes, curves):
        axis.plot(steps, values, color="#1f5f8b")
        axis.set_title(title)
        axis.set_ylim(0)
    shares = [strategy_probabilities(s / total, experiment.masks) for s in steps]
    axes[2].stackplot(steps, list(zip(*shares)), labels=STRATEGIES, colors=("#c9d8e4", "#6f9fc0", "#1f5f8b"))
    axes[2].set_title("masking strategies")
    axes[2].legend(loc="lower left")
    for axis in axes:
        axis.set_xlabel("step")
    figure.savefig(path, dpi=150)


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


def _memory_lines(memory: Memory, experiment: Experiment, gpu_memory_gb: float) -> list[str]:
    share = memory.total / (gpu_memory_gb * 1e9)
    verdict = "fits" if share < 0.9 else "tight" if share < 1 else "DOES NOT FIT"
    advice = "" if share < 0.9 else "; try a smaller engine.micro_batch, activation checkpointing, a higher stage"
    return [
        f"memory per GPU, ZeRO stage {experiment.engine.zero_stage}, {experiment.engine.precision}",
        *(f"  {name:<12}{value / GIB:8.2f} GiB" for name, value in vars(memory).items()),
        f"  {'total':<12}{memory.total / GIB:8.2f} GiB = {share:.0%} of {gpu_memory_gb:g} GB: {verdict}{advice}",
        "",
    ]


def _cost_lines(cost: TrainingCost) -> list[str]:
    parts = vars(cost)
    return [
        f"operations   {cost.total / TERA:.3g} TFLOP per crop",
        *(f"  {name:<12}{value / TERA:8.3f} TFLOP {value / cost.total:5.0%}" for name, value in parts.items()),
        "",
    ]


def _time_lines(experiment: Experiment, crops_per_s: float, *, mfu: float) -> list[str]:
    steps, batch = experiment.train.steps, experiment.stream.global_batch
    hours = steps * batch / crops_per_s / 3600
    audio_hours = steps * batch * experiment.model.crop_frames / 100 / 3600
    return [
        f"time         {crops_per_s:,.0f} crops/s at MFU {mfu:g}: {batch / crops_per_s:.3g} s per step",
        f"             {steps:,} steps = {steps * batch:,} crops = {audio_hours:,.0f} h of audio in {hours:,.1f} h",
    ]
