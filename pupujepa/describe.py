"""Show what a model is: architecture, parameters by module, token grid and floating-point operations.

Takes the name of a size (demo, tiny, small, base, large, huge, giant), which needs no weights, or a folder of weights:

  python -m pupujepa info tiny
  python -m pupujepa info runs/demo/export
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from pupujepa.cost import inference_flops, training_cost
from pupujepa.masks import MaskConfig, num_context, num_targets
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.sizes import model_size, size_names
from pupujepa.weights import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", help=f"a size ({', '.join(size_names())}), a folder of weights, or a hub id")


def run(args: argparse.Namespace) -> int:
    """Writes the description to standard output."""
    sys.stdout.write(describe(_model(args.model)))
    return 0


def describe(model: PupuJEPA) -> str:
    """Returns the description of a model as text; a model on the meta device will do."""
    masks = MaskConfig()
    config = model.config
    cost = training_cost(config, masks)
    seconds = config.crop_frames / model.frontend.frames_per_s
    lines = [
        "architecture",
        *(f"  {name:<18}{value}" for name, value in asdict(config).items()),
        "",
        f"token grid of a {seconds:g} s crop",
        f"  {config.grid_steps} steps x {config.grid_bands} bands = {config.num_patches} tokens, "
        f"{model.frontend.frames_per_s / config.patch_frames:g} steps/s",
        f"  mask ratio {masks.ratio}: {num_context(masks, config.num_patches)} context, "
        f"{num_targets(masks, config.num_patches)} targets",
        f"  `frames` readout is {config.grid_bands * config.width} wide",
        "",
        "parameters",
        *(f"  {name:<18}{count:>15,}" for name, count in parameter_counts(model).items()),
        "",
        "operations per crop",
        f"  {'training':<18}{cost.total / 1e9:>15,.1f} GFLOP",
        *(
            f"    {name:<16}{flops / 1e9:>15,.1f} GFLOP  {100 * flops / cost.total:3.0f} %"
            for name, flops in asdict(cost).items()
        ),
        f"  {'encoding':<18}{inference_flops(config) / 1e9:>15,.1f} GFLOP",
    ]
    return "\n".join(lines) + "\n"


def parameter_counts(model: PupuJEPA) -> dict[str, int]:
    """Returns the number of parameters of each module; student and teacher have the same."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}


def _model(name: str) -> PupuJEPA:
    if name in size_names() and not Path(name).is_dir():
        return _without_weights(model_size(name))
    if "/" not in name and not Path(name).exists():
        model_size(name)  # a misspelt size: raises with the nearest names
    return load(name)


def _without_weights(config: ModelConfig) -> PupuJEPA:
    with torch.device("meta"):
        return PupuJEPA(config)
