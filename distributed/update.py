"""One update of the weights: the micro-batches of a step forward and backward, the losses summed, the optimizer.

The losses are summed over all ranks while the last backward pass computes, so that ranks wait for each other once, in
the sum of the gradients, and a GPU gets its work ahead of time. A loss that is no number makes its gradients NaN,
whatever they would have been; their sum is then NaN on every rank, so that the one way in which DeepSpeed drops a step,
a gradient without a norm, is taken everywhere.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.batches import Batch
from distributed.faulty_steps import MicroBatches
from distributed.gradients import clip_without_zero, gradient_norm
from distributed.observe import StepObserver
from distributed.watchdog import BACKWARD, COLLECTIVE, DATA, FORWARD, OPTIMIZER, Whereabouts
from pupujepa.masks import STRATEGIES


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of a global batch over all ranks, and how many ranks were asked to stop."""

    loss: float
    by_strategy: dict[str, float]
    stops: int


@dataclass(frozen=True)
class Update:
    """What came of a step.

    norm: of the averaged gradient before clipping, over all ranks. micro_batches: those of this rank.
    """

    losses: StepLosses
    norm: float
    micro_batches: MicroBatches

    @property
    def fault(self) -> str:
        """Which number is none, in words, so that nothing was changed; "" for a good step. The same on all ranks."""
        if not math.isfinite(self.losses.loss):
            return f"the loss is {self.losses.loss}"
        return "" if math.isfinite(self.norm) else f"the norm of the gradient is {self.norm}"


def update(
    engine: Any,
    batches: Iterator[Batch],
    *,
    step: int,
    clip_norm: float,
    asked: Callable[[], bool],
    whereabouts: Whereabouts,
    observer: StepObserver | None = None,
) -> Update:
    """Takes the micro-batches of a step and updates the weights, or leaves them where a number is none.

    Args:
        clip_norm: longest gradient that is taken as it is; 0 takes all.
        asked: whether this rank was asked to stop, as late as the others can still be told.
        observer: sees every micro-batch, and the gradients before the optimizer takes them.
    """
    sums = torch.zeros(2, len(STRATEGIES), dtype=torch.float64, device=engine.device)
    micro_batches: list[tuple[Batch, Tensor]] = []
    accumulation = engine.gradient_accumulation_steps()
    norm = 0.0
    for micro in range(accumulation):
        whereabouts.at(DATA, step)
        batch = next(batches)
        assert batch.step == step, f"the stream is at step {batch.step}, the trainer at {step}"
        on_device = batch.to(engine.device)
        whereabouts.at(FORWARD, step)
        loss, aux = engine(on_device.mel(), on_device.context, on_device.target)
        loss = _or_nan(loss, aux["per_sample_loss_B"])
        sums += _sums_by_strategy(aux["per_sample_loss_B"], on_device.strategy)
        micro_batches.append((batch, aux["per_sample_loss_B"]))
        if observer is not None:
            observer.after_forward(on_device, aux)
        is_last = micro + 1 == accumulation
        if is_last:
            total = _SumOverRanks(sums, asked=asked())
        whereabouts.at(BACKWARD, step)
        engine.backward(loss)
        if is_last:
            whereabouts.at(COLLECTIVE, step)
            losses = total.losses()
            if observer is not None:
                observer.after_backward(engine)
        whereabouts.at(OPTIMIZER, step)
        if is_last and not engine.zero_optimization_stage():
            norm = gradient_norm(engine)
            if not math.isfinite(norm):
                # without ZeRO DeepSpeed would take it, and clip what is not there: the step is only counted
                engine.zero_grad()
                engine.micro_steps += 1
                engine.global_steps += 1
                break
            clip_without_zero(engine, norm=norm, clip_norm=clip_norm)
        engine.step()
    if engine.zero_optimization_stage():
        norm = gradient_norm(engine)
    return Update(losses, norm, micro_batches)


def _sums_by_strategy(loss_B: Tensor, strategy_B: Tensor) -> Tensor:
    """Sums of losses and counts of crops per strategy, [2, strategies]; by products, which have a fixed order."""
    chosen_BS = (strategy_B[:, None] == torch.arange(len(STRATEGIES), device=strategy_B.device)).double()
    return torch.stack([loss_B.double() @ chosen_BS, chosen_BS.sum(0)])


def _or_nan(loss: Tensor, loss_B: Tensor) -> Tensor:
    """Returns the loss as it is, or NaN where one is no number; without asking the device which it was."""
    is_number = loss.detach().isfinite() & loss_B.isfinite().all()
    return loss * torch.where(is_number, 1.0, math.nan)


class _SumOverRanks:
    """The sums of all ranks, on their way."""

    def __init__(self, sums: Tensor, *, asked: bool):
        # filled on the device: a tensor made from a Python number is copied there, for which the host waits
        self._total = torch.cat([sums.flatten(), sums.new_full((1,), float(asked))])
        self._work = dist.all_reduce(self._total, async_op=True) if dist.get_world_size() > 1 else None

    def losses(self) -> StepLosses:
        """Waits for them."""
        if self._work is not None:
            self._work.wait()
        *numbers, stops = self._total.tolist()
        losses, counts = numbers[: len(STRATEGIES)], numbers[len(STRATEGIES) :]
        by_strategy = {f"loss_{name}": s / n for name, s, n in zip(STRATEGIES, losses, counts, strict=True) if n}
        return StepLosses(sum(losses) / sum(counts), by_strategy, int(stops))
