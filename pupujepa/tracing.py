"""What a training step needs, found by tracing the real one without computing anything: memory and operations.

Memory: every tensor that autograd keeps is counted once per storage. What grows with the batch are the activations;
what does not are the bf16 copies of the weights. Operations: those that torch's own counter counts, as a check on the
arithmetic of cost.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pupujepa.architecture import ModelConfig
from pupujepa.masks import MaskConfig, num_context, num_targets
from pupujepa.model import PupuJEPA
from pupujepa.objective import ObjectiveConfig, TrainingStep

_SHALLOW = (2, 3)


@dataclass(frozen=True)
class SavedBytes:
    """Bytes kept for the backward pass: of each crop, and of the micro-batch as a whole."""

    per_crop: int
    constant: int


@dataclass(frozen=True)
class StepConfig:
    """What a training step is built from, and the masks that it gets."""

    model: ModelConfig
    masks: MaskConfig
    objective: ObjectiveConfig
    autocast_dtype: torch.dtype | None = None
    activation_checkpointing: bool = False


def saved_bytes(config: StepConfig) -> SavedBytes:
    """Traces forward passes of one and of two crops."""
    by_depth = []
    for depth in _SHALLOW:
        with FakeTensorMode():
            step = _step_without_values(_cut_to(depth, config))
            own = {p.untyped_storage()._cdata for p in (*step.parameters(), *step.teacher.parameters())}
            one, two = (_kept_by_forward(step, config.masks, crops=crops, own=own) for crops in (1, 2))
        by_depth.append((two - one, 2 * one - two))
    # blocks are alike: what one more adds, the others add too
    more = config.model.depth - _SHALLOW[0]
    per_crop, constant = (a + more * (b - a) for a, b in zip(*by_depth, strict=True))
    return SavedBytes(per_crop, constant)


def counted_flops(config: StepConfig) -> int:
    """Returns the operations that torch counts in the forward and backward pass of one crop.

    Attention is run by the plain backend: fused ones recompute scores in their backward pass, which is their business
    and not the model's.
    """
    with FakeTensorMode():
        step = _step_without_values(config)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            _loss(step, config.masks, crops=1).backward()
    return counter.get_total_flops()


def _cut_to(depth: int, config: StepConfig) -> StepConfig:
    objective = replace(config.objective, target_layers=min(config.objective.target_layers, depth))
    return replace(config, model=replace(config.model, depth=depth), objective=objective)


def _step_without_values(config: StepConfig) -> TrainingStep:
    """Builds the step with tensors that have shapes and types but no values; the tracing mode is active."""
    with torch.device("meta"):
        model = PupuJEPA(config.model)
    step = TrainingStep(
        model,
        config.objective,
        config.autocast_dtype,
        activation_checkpointing=config.activation_checkpointing,
    )
    for module in _modules(step, step.teacher):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
    return step


def _modules(*outer: nn.Module) -> Iterator[nn.Module]:
    for module in outer:
        yield from module.modules()


def _loss(step: TrainingStep, masks: MaskConfig, *, crops: int) -> Tensor:
    config = step.config
    context, targets = num_context(masks, config.num_patches), num_targets(masks, config.num_patches)
    loss, _ = step(
        torch.zeros(crops, config.crop_frames, config.mel_bands),
        torch.zeros(crops, context, dtype=torch.int64),
        torch.zeros(crops, targets, dtype=torch.int64),
    )
    return loss


def _kept_by_forward(step: TrainingStep, masks: MaskConfig, *, crops: int, own: set[int]) -> int:
    # holds the tensors, so that no storage's address is used again
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(step, masks, crops=crops)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
