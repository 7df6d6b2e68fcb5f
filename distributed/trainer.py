"""The training loop and its step, top to bottom.

A step: for each micro-batch forward and backward, one sum of the losses (and of the requests to stop) over all ranks,
the optimizer, the teacher. The learning rate, the teacher's momentum, the samples and their masks are pure functions of
the step, so a resumed run repeats nothing and ends with the same bits.

Steps count from 0. A training row of step s holds the loss of global batch s. A row of diagnostics at step s describes
the weights after s steps, before batch s.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.stream.batches import Batch
from data.stream.stream import Stream
from distributed.checkpoints.state import Checkpoints
from distributed.engine.engine import set_learning_rate
from distributed.engine.teacher import Teacher
from distributed.experiment import Experiment
from distributed.processes.stop import StopRequest
from distributed.processes.topology import Topology
from distributed.processes.watchdog import BACKWARD, DATA, FORWARD, Whereabouts
from distributed.run.log import RunLog
from distributed.watch.faulty_steps import FaultySteps
from distributed.watch.watch import Watch
from pupujepa.model.model import PupuJEPA
from pupujepa.training.ema import ema_momentum
from pupujepa.training.masks import STRATEGIES
from pupujepa.training.objective import TrainingStep
from pupujepa.training.schedules import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Everything that the loop works with; `engine` is a DeepSpeedEngine around `step`, which trains `model`."""

    topology: Topology
    device: torch.device
    engine: Any
    step: TrainingStep
    model: PupuJEPA
    teacher: Teacher
    stream: Stream
    checkpoints: Checkpoints
    watch: Watch
    log: RunLog
    faulty: FaultySteps
    whereabouts: Whereabouts


class Ending(Enum):
    """How a session ended."""

    FINISHED = auto()
    STOPPED = auto()
    """Asked to stop before the last step; saved."""
    COLLAPSED = auto()
    """The guard stopped it."""


class Trainer:
    """Trains from `first_step` to the end, or until it is asked to stop; every rank has one."""

    def __init__(self, experiment: Experiment, parts: Parts, *, first_step: int):
        self.experiment, self.step, self.total_steps = experiment, first_step, experiment.train.steps
        self.topology, self.device, self.engine = parts.topology, parts.device, parts.engine
        self.stream, self.teacher, self.checkpoints = parts.stream, parts.teacher, parts.checkpoints
        self.watch, self.log, self.faulty, self.whereabouts = parts.watch, parts.log, parts.faulty, parts.whereabouts
        self.accumulation = parts.engine.gradient_accumulation_steps()
        self.corpora = [corpus.name for corpus in parts.stream.corpora.members]
        self.has_collapsed = False

    def run(self, stop: StopRequest) -> Ending:
        """Returns how it ended; the finished steps are saved unless the guard stopped it."""
        batches: Iterator[Batch] = iter(self.stream)
        while self.step < self.total_steps:
            # diagnostics, linear probes and alarms: the watch knows when they are due
            if self.watch.before_step(self.step):
                self.checkpoints.settle()  # the one in flight holds the steps before the alarm
                self.has_collapsed = True
                return Ending.COLLAPSED
            result = self.train_step(batches, stop)
            self.step += 1
            if result.stop_requests:
                # any rank's request reaches all of them with the losses, so all save the same step
                ranks = self.topology.world_size
                logger.warning("asked to stop (%d of %d ranks): saving step %d", result.stop_requests, ranks, self.step)
                self.checkpoints.save(self.step)
                return Ending.STOPPED
            # retention must not delete good checkpoints in favour of diverged ones
            self.checkpoints.save_if_due(self.step, skip=not result.is_finite)
        self.checkpoints.save(self.step)
        self.watch.after_last_step(self.step)
        return Ending.FINISHED

    def train_step(self, batches: Iterator[Batch], stop: StopRequest) -> "StepResult":
        """Takes the micro-batches of one step and updates the weights, unless the loss or the gradient is not finite.

        Raises:
            DivergedError: too many steps in a row were not finite; on all ranks.
            FrozenTeacherError: the teacher did not follow the student; on all ranks.
        """
        step, experiment = self.step, self.experiment
        self.log.start_step()
        rate = learning_rate(step, self.total_steps, experiment.schedule, branch=experiment.branch)
        momentum = ema_momentum(step, experiment.horizon_steps, experiment.ema)
        set_learning_rate(self.engine, rate)
        sums = LossSums(self.corpora, self.device)
        micro_batches: list[tuple[Batch, Tensor]] = []
        for micro in range(self.accumulation):
            self.whereabouts.at(DATA, step)
            batch = next(batches)
            assert batch.step == step, f"the stream is at step {batch.step}, the trainer at {step}"
            on_device = batch.to(self.device)
            self.whereabouts.at(FORWARD, step)
            loss, aux = self.engine(on_device.mel(), on_device.context, on_device.target)
            sums.add(on_device, aux["per_sample_loss_B"])
            micro_batches.append((batch, aux["per_sample_loss_B"]))
            if micro + 1 == self.accumulation:
                # overlaps with the backward pass, so ranks wait for each other once a step, in the gradients' sum
                sums.start_all_reduce(stop_requested=stop.requested(self._seconds_to_stop()))
            self.whereabouts.at(BACKWARD, step)
            self.engine.backward(nan_unless_finite(loss, aux["per_sample_loss_B"]))
            self.engine.step()  # updates only after the last micro-batch; skips the update if the norm is not finite
        result = sums.wait(grad_norm=float(self.engine.get_global_grad_norm()))
        due = self.log.is_due(step)
        movement = self.teacher.follow(momentum, measured=due) if result.is_finite else {}
        rates = {"step": step, "epoch": batch.epoch, "lr": rate, "ema_momentum": momentum}
        self.log.step(rates | result.row() | movement, due=due or not result.is_finite)
        if result.is_finite:
            self.faulty.forget()
        else:
            # a checkpoint in flight is from before, and must not be lost if this is the end
            last_saved = self.checkpoints.settle()
            self.faulty.skip(step, result.fault, micro_batches, last_saved=last_saved)
        return result

    def _seconds_to_stop(self) -> float:
        """Seconds that the run needs to save before its time is over: the longest probe, two steps, two saves."""
        return self.watch.longest_probe_s + 2 * (self.log.seconds_per_step + self.checkpoints.longest_save_s)


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, the same on all ranks.

    loss: mean over the global batch. by_group: mean losses by strategy and corpus, under the names of a metrics row.
    grad_norm: of the averaged gradient before clipping. stop_requests: ranks that were asked to stop.
    """

    loss: float
    by_group: dict[str, float]
    grad_norm: float
    stop_requests: int

    @property
    def fault(self) -> str:
        """Why the update was skipped ("the loss is nan"); "" if it was applied."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return "" if math.isfinite(self.grad_norm) else f"the norm of the gradient is {self.grad_norm}"

    @property
    def is_finite(self) -> bool:
        """True if the update was applied."""
        return not self.fault

    def row(self) -> dict[str, float]:
        """Returns the step's part of a metrics row."""
        if not self.is_finite:
            return {"skipped": 1}
        return {"skipped": 0, "loss": self.loss, "grad_norm": self.grad_norm} | self.by_group


class LossSums:
    """Sums and counts of losses by strategy and by corpus, over the micro-batches of a step, then over all ranks.

    Nothing asks the device for a value before `wait`.

    Args:
        corpora: names of the stream's corpora; the losses of a single one are not reported apart.
    """

    def __init__(self, corpora: Sequence[str], device: torch.device):
        self._corpora = tuple(corpora) if len(corpora) > 1 else ()
        self._sums_2G = torch.zeros(2, len(STRATEGIES) + len(self._corpora), dtype=torch.float64, device=device)
        self._total = self._sums_2G
        self._work: dist.Work | None = None

    def add(self, batch: Batch, loss_B: Tensor) -> None:
        """Adds a micro-batch that is on the device."""
        groups_GB = one_hot(batch.strategy, len(STRATEGIES))
        if self._corpora:
            names = [uid.partition("/")[0] for uid in batch.uids]
            index_B = torch.tensor([self._corpora.index(name) for name in names])
            of_corpora_CB = one_hot(index_B.to(loss_B.device, non_blocking=True), len(self._corpora))
            groups_GB = torch.cat([groups_GB, of_corpora_CB])
        # a product adds in a fixed order on every device, which an indexed sum does not
        self._sums_2G += torch.stack([groups_GB @ loss_B.detach().double(), groups_GB.sum(1)])

    def start_all_reduce(self, *, stop_requested: bool) -> None:
        """Starts the sum over ranks, of the losses and of the requests to stop."""
        # filled on the device: a tensor made from a Python number is copied there, for which the host waits
        request = self._sums_2G.new_full((1,), float(stop_requested))
        self._total = torch.cat([self._sums_2G.flatten(), request])
        self._work = dist.all_reduce(self._total, async_op=True) if dist.get_world_size() > 1 else None

    def wait(self, *, grad_norm: float) -> StepResult:
        """Waits for the sums of all ranks."""
        if self._work is not None:
            self._work.wait()
        *numbers, stop_requests = self._total.tolist()
        sums, counts = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        names = [*(f"loss_{name}" for name in STRATEGIES), *(f"mix/{name}/loss" for name in self._corpora)]
        by_group = {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n}
        # every crop has one strategy, so the strategies' sums are those of the batch
        loss = sum(sums[: len(STRATEGIES)]) / sum(counts[: len(STRATEGIES)])
        return StepResult(loss, by_group, grad_norm, int(stop_requests))


def nan_unless_finite(loss: Tensor, loss_B: Tensor) -> Tensor:
    """Returns the loss, or NaN if one crop's loss is not finite, without asking the device which.

    The gradients are then NaN, and so is their sum on every rank: DeepSpeed skips the update everywhere.
    """
    is_finite = loss.detach().isfinite() & loss_B.isfinite().all()
    return loss * torch.where(is_finite, 1.0, math.nan)


def one_hot(index_B: Tensor, count: int) -> Tensor:
    """Membership [count, B] of the crops in groups, float64."""
    return (torch.arange(count, device=index_B.device)[:, None] == index_B[None]).double()
