"""What a training step needs, found by tracing the real one without computing anything: memory and operations.

Memory: every tensor that autograd keeps is counted once per storage. What grows with the batch are the activations;
what does not are the bf16 copies of the weights. Peaks count whatever is alive, operation by operation, and note how
much of it is left when each gradient is done, since what becomes of gradients is the engine's choice. Operations:
those that torch's own counter counts, as a check on the arithmetic of cost.py.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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
class StepPeaks:
    """Bytes alive beside parameters and their gradients, as the largest of each stretch of a step.

    forward: of the forward pass.
    backward: one pair per gradient, in the order in which they are done: the bytes since the one before, and how many
        entries of gradients are done with it.
    """

    forward: int
    backward: tuple[tuple[int, int], ...]


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


def step_peaks(config: StepConfig, *, crops: int) -> StepPeaks:
    """Traces forward and backward of one and of two crops; bytes grow by as much with each further crop."""
    one, two = (_peaks_of(config, crops=n) for n in (1, 2))
    more = crops - 1
    backward = tuple((a + more * (b - a), done) for (a, done), (b, _) in zip(one.backward, two.backward, strict=True))
    return StepPeaks(one.forward + more * (two.forward - one.forward), backward)


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


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from their making to when nobody holds them."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = own

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def peak_since_last(self) -> int:
        """Returns the most bytes alive since the last call."""
        peak, self.peak = self.peak, self.now
        return peak

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@cache
def _peaks_of(config: StepConfig, *, crops: int) -> StepPeaks:
    done, backward = 0, []
    with FakeTensorMode():
        step = _step_without_values(config)
        with _LiveBytes({p.untyped_storage()._cdata for p in (*step.parameters(), *step.teacher.parameters())}) as live:

            def take(parameter: Tensor) -> None:
                nonlocal done
                done += parameter.numel()
                backward.append((live.peak_since_last(), done))
                parameter.grad = None

            for parameter in step.parameters():
                parameter.register_post_accumulate_grad_hook(take)
            loss = _loss(step, config.masks, crops=crops)
            forward = live.peak_since_last()
            loss.backward()
    return StepPeaks(forward, tuple(backward))
