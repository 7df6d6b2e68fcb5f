"""How much memory a backward pass needs, found by tracing the real training step without computing anything.

Every tensor that autograd keeps is counted once per storage. What grows with the batch are the activations; what does
not are the bf16 copies of the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distributed.engine import PRECISIONS
from distributed.experiment import Experiment
from pupujepa.masks import num_context, num_targets
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep


@dataclass(frozen=True)
class SavedBytes:
    """Bytes kept for the backward pass: of each crop, and of the micro-batch as a whole."""

    per_crop: int
    constant: int


def saved_bytes(experiment: Experiment) -> SavedBytes:
    """Traces forward passes of one and of two crops."""
    shallow = (2, 3)
    by_depth = [_traced(experiment, depth=depth) for depth in shallow]
    # blocks are alike: what one more adds, the others add too
    more = experiment.model.depth - shallow[0]
    per_crop, constant = (a + more * (b - a) for a, b in zip(*by_depth, strict=True))
    return SavedBytes(per_crop, constant)


def _traced(experiment: Experiment, *, depth: int) -> tuple[int, int]:
    config = replace(experiment.model, depth=depth)
    objective = replace(experiment.objective, target_layers=min(experiment.objective.target_layers, depth))
    with torch.device("meta"):
        model = PupuJEPA(config)
    step = TrainingStep(
        model,
        objective,
        PRECISIONS[experiment.engine.precision],
        activation_checkpointing=experiment.engine.activation_checkpointing,
    )
    context = num_context(experiment.masks, config.num_patches)
    targets = num_targets(experiment.masks, config.num_patches)
    # tensors have shapes and types inside, but no values
    with FakeTensorMode():
        own = {p.untyped_storage()._cdata for p in _without_values(step, step.teacher)}
        one, two = (_kept_by_forward(step, crops, context=context, targets=targets, own=own) for crops in (1, 2))
    return two - one, 2 * one - two


def _without_values(*modules: nn.Module) -> Iterator[nn.Parameter]:
    """Replaces all parameters, in place, by ones of the tracing mode that is active; yields those."""
    for module in (inner for outer in modules for inner in outer.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
                module._parameters[name] = made
                yield made


def _kept_by_forward(step: TrainingStep, crops: int, *, context: int, targets: int, own: set[int]) -> int:
    config = step.config
    # holds the tensors, so that no storage's address is used again
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mel_BTF = torch.zeros(crops, config.crop_frames, config.mel_bands)
        loss, _ = step(
            mel_BTF,
            torch.zeros(crops, context, dtype=torch.int64),
            torch.zeros(crops, targets, dtype=torch.int64),
        )
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
