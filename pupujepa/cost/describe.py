"""Show a model's architecture, parameters, token grid, operations per crop, and memory by ZeRO stage.

The model is a size (demo, tiny, small, base, large, huge, giant), which needs no weights, or a folder of weights:

  python -m pupujepa info tiny
  python -m pupujepa info runs/demo/export
  python -m pupujepa info large --ranks 64 --micro-batch 16 --checkpointing
  python -m pupujepa info tiny --count          check the operations with torch's counter

Operations are those of matrix products; a multiply and an add are two. Memory is per rank, computed by formula: float32
weights, gradients and Adam's moments as the ZeRO stage shards them, the whole teacher, and the activations of a
micro-batch. Leave a tenth free for buffers. `python -m distributed plan` computes a whole experiment, with its hours.
"""

import argparse
import sys
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pupujepa.cost.cost import count_parameters, inference_flops, model_size, size_names, training_cost
from pupujepa.cost.memory import ZERO_STAGES, StepConfig, activations, memory_per_rank
from pupujepa.errors import UserError
from pupujepa.model.architecture import ModelConfig
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import PRECISIONS
from pupujepa.training.masks import MaskConfig, num_context, num_targets
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from pupujepa.weights.weights import load

GIGA, GIB = 1e9, 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", help=f"a size ({', '.join(size_names())}), a folder of weights, or a hub id")
    parser.add_argument("--ranks", type=int, default=8, help="number of ranks (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=1, help="crops per rank at once (default: %(default)s)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="default: %(default)s")
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--count", action="store_true", help="check the operations with torch's counter; takes seconds")


def run(args: argparse.Namespace) -> int:
    """Writes the description to standard output.

    Raises:
        UserError: fewer than one rank or crop, or no such model.
    """
    if min(args.ranks, args.micro_batch) < 1:
        raise UserError(f"--ranks {args.ranks} --micro-batch {args.micro_batch}: both must be at least 1")
    model = _model(args.model)
    step = StepConfig(
        model.config,
        MaskConfig(),
        ObjectiveConfig(kind=model.config.predictor_objective),
        PRECISIONS[args.precision],
        activation_checkpointing=args.checkpointing,
        crops=args.micro_batch,
        ranks=args.ranks,
    )
    sys.stdout.write(describe(model))
    sys.stdout.write(describe_operations(step, counted=counted_flops(step) if args.count else None))
    sys.stdout.write(describe_memory(step))
    return 0


def describe(model: PupuJEPA) -> str:
    """Returns architecture, grid and parameters of a model as text; its weights are not read."""
    masks = MaskConfig()
    config = model.config
    seconds = config.crop_frames / model.frontend.frames_per_s
    lines = [
        "architecture",
        *(f"  {name:<20}{value}" for name, value in asdict(config).items()),
        "",
        f"token grid of a {seconds:g} s crop",
        f"  {config.grid_steps} steps x {config.grid_bands} bands = {config.num_patches} tokens, "
        f"{model.frontend.frames_per_s / config.patch_frames:g} steps/s",
        f"  mask ratio {masks.ratio}: {num_context(masks, config.num_patches)} context, "
        f"{num_targets(masks, config.num_patches)} targets",
        f"  `frames` readout is {config.grid_bands * config.width} wide",
        "",
        "parameters",
        *(f"  {name:<20}{sum(p.numel() for p in module.parameters()):>15,}" for name, module in model.named_children()),
        "",
    ]
    return "\n".join(lines) + "\n"


def describe_operations(step: StepConfig, *, counted: int | None) -> str:
    """Returns the operations per crop as text, with those that torch's counter counted, if any."""
    cost = training_cost(step.model, step.masks, step.objective)
    lines = ["operations per crop, forward and backward", f"  {'training':<20}{_gflop(cost.total)}"]
    lines += [f"    {name:<18}{_gflop(flops)}  {flops / cost.total:4.0%}" for name, flops in asdict(cost).items()]
    if counted is not None:
        verdict = "the same" if counted == cost.total else f"{counted / cost.total - 1:+.2%}: please report this"
        lines.append(f"  {'counted by torch':<20}{_gflop(counted)}  {verdict}")
    lines += [f"  {'encoding':<20}{_gflop(inference_flops(step.model))}", ""]
    return "\n".join(lines) + "\n"


def describe_memory(step: StepConfig) -> str:
    """Returns the memory of one rank, a column per ZeRO stage, as text."""
    kept = activations(step)["kept"]
    counts = count_parameters(step.model)
    memory = [
        memory_per_rank(counts, zero_stage=stage, ranks=step.ranks, activation_bytes=kept) for stage in ZERO_STAGES
    ]
    crops = "1 crop" if step.crops == 1 else f"{step.crops} crops"
    precision = "float32" if step.autocast_dtype is None else "bf16"
    recomputed = ", blocks recomputed" if step.activation_checkpointing else ""
    lines = [
        f"memory per rank in GiB, {step.ranks} ranks, {crops} at once, {precision}{recomputed}",
        f"  {'ZeRO stage':<20}" + "".join(f"{stage:>10}" for stage in ZERO_STAGES),
        # `buffers` is 0, because this table does not compute them
        *(
            f"  {part:<20}" + "".join(f"{getattr(m, part) / GIB:>10.3f}" for m in memory)
            for part in (*(name for name, size in asdict(memory[0]).items() if size), "total")
        ),
    ]
    return "\n".join(lines) + "\n"


def counted_flops(step: StepConfig) -> int:
    """Returns torch's count of the operations of one crop, forward and backward, on fake tensors.

    It counts the plain attention in float32, because bf16 kernels on CPUs, checkpointing and the backward pass of fused
    attention compute some products twice.
    """
    config = step.model
    context, targets = num_context(step.masks, config.num_patches), num_targets(step.masks, config.num_patches)
    with FakeTensorMode():
        model = _without_weights(config)
        for module in model.modules():
            # from meta to the CPU: the step's autocast needs a real device type
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the plain attention
            loss, _ = TrainingStep(model, step.objective)(
                torch.zeros(1, config.crop_frames, config.mel_bands),
                torch.zeros(1, context, dtype=torch.int64),
                torch.zeros(1, targets, dtype=torch.int64),
            )
            loss.backward()
    return counter.get_total_flops()


def _gflop(flops: int) -> str:
    return f"{flops / GIGA:>15,.1f} GFLOP"


def _model(name: str) -> PupuJEPA:
    if name in size_names() and not Path(name).is_dir():  # a folder named `tiny` comes before the size
        return _without_weights(model_size(name))
    if "/" not in name and not Path(name).exists():  # with a slash it may be a hub id
        near = get_close_matches(name, size_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "check the path"
        raise UserError(f"{name!r} is neither a size ({', '.join(size_names())}) nor a folder of weights; {hint}")
    return load(name)


def _without_weights(config: ModelConfig) -> PupuJEPA:
    with torch.device("meta"):
        return PupuJEPA(config)
