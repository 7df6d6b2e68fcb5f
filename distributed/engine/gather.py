"""Full parameters under every ZeRO stage: gathered in buckets, copied to the CPU or into a model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distributed.engine.teacher_shards import full_numel, whole_again
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import TrainingStep

# parameters gathered at once under stage 3: 64 MiB of float32
GATHER_ELEMENTS = 1 << 24


@contextmanager
def gathered(parameters: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Gathers the full values of `parameters` inside the block, to read only; all ranks together."""
    with whole_again(parameters):
        if not any(hasattr(p, "ds_id") for p in parameters):
            yield parameters
            return
        import deepspeed

        # without a modifier rank, so that anything written inside would be lost
        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield parameters


def in_buckets(parameters: Sequence[Tensor], elements: int) -> Iterator[slice]:
    """Yields slices of `parameters` of about `elements` entries each, to bound the memory of gathering."""
    start, size = 0, 0
    for index, parameter in enumerate(parameters):
        size += full_numel(parameter)
        if size >= elements:
            yield slice(start, index + 1)
            start, size = index + 1, 0
    if start < len(parameters):
        yield slice(start, len(parameters))


def full_state(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Copies the full parameters to the CPU, all ranks together; keep=False takes part but returns none."""
    named = list(module.named_parameters())
    parameters = [p for _, p in named]
    state: dict[str, Tensor] = {}
    for bucket in in_buckets(parameters, GATHER_ELEMENTS):
        with gathered(parameters[bucket]) as full:
            if keep:
                state.update({name: p.detach().cpu().clone() for (name, _), p in zip(named[bucket], full, strict=True)})
    return state


@contextmanager
def whole_step(step: TrainingStep, model: PupuJEPA) -> Iterator[tuple[TrainingStep, PupuJEPA]]:
    """Yields the step and the model with full weights; all ranks enter it together.

    Only stage 3 copies the weights.
    """
    if not any(hasattr(p, "ds_id") for p in step.parameters()):
        yield step, model
        return
    twin = whole_model(step, model).to(next(step.teacher.parameters()).device)
    yield TrainingStep(twin, step.objective, step.autocast_dtype), twin


def whole_model(step: TrainingStep, model: PupuJEPA) -> PupuJEPA:
    """Copies student, predictor and teacher into a new model on the CPU; all ranks call it together."""
    state = full_state(step)
    state |= {f"teacher.{name}": tensor for name, tensor in full_state(step.teacher).items()}
    with torch.device("meta"):
        copy = PupuJEPA(model.config, frontend=model.frontend)
    copy.load_state_dict(state, assign=True)
    copy.teacher.requires_grad_(False)
    return copy
