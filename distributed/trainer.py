"""The training loop and its step, top to bottom.

A step runs forward and backward for each micro-batch, sums the losses and stop requests over all ranks once, then
updates the weights and the teacher. The learning rate, the momentum, the samples and the masks are pure functions of
the step. So a resumed run repeats nothing and ends with the same bits.

Steps count from 0. The training row of step s holds the loss of global batch s. The diagnostics row of step s describes
the weights after s steps, before batch s.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
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
    """The objects that the loop uses; `engine` is a DeepSpeedEngine around `step`, which trains `model`."""

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
    """The end of a session."""

    FINISHED = auto()
    STOPPED = auto()  # by request, before the last step; saved
    COLLAPSED = auto()  # stopped by the guard


class Trainer:
    """The loop from `first_step` to the last step, or to a stop request; every rank has one."""

    def __init__(self, experiment: Experiment, parts: Parts, *, first_step: int):
        self.experiment, self.step, self.total_steps = experiment, first_step, experiment.train.steps
        self.topology, self.device, self.engine = parts.topology, parts.device, parts.engine
        self.stream, self.teacher, self.checkpoints = parts.stream, parts.teacher, parts.checkpoints
        self.watch, self.log, self.faulty, self.whereabouts = parts.watch, parts.log, parts.faulty, parts.whereabouts
        self.accumulation = parts.engine.gradient_accumulation_steps()
        self.corpora = [corpus.name for corpus in parts.stream.corpora.members]

    def run(self, stop: StopRequest) -> Ending:
        """Trains, saves the finished steps unless the guard stops the run, and returns the ending."""
        # closed even if an error keeps this frame alive: data workers would outlive it, and the process wait for them
        with closing(iter(self.stream)) as batches:
            return self._run(batches, stop)

    def _run(self, batches: Iterator[Batch], stop: StopRequest) -> Ending:
        while self.step < self.total_steps:
            # diagnostics, linear probes and alarms: the watch knows when they are due
            if self.watch.before_step(self.step):
                self.checkpoints.settle()  # publishes the checkpoint in flight: it is from before the alarm
                return Ending.COLLAPSED
            result = self.train_step(batches, stop)
            self.step += 1
            if result.stop_requests:
                # summed over ranks with the losses, so all ranks save the same step
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
        """Trains one step; skips the update on all ranks if the loss or the gradient is not finite.

        Raises:
            DivergedError: too many consecutive steps were not finite; on all ranks.
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
                # overlaps with the backward pass: ranks wait once a step, when they sum the gradients
                sums.start_all_reduce(stop_requested=stop.requested(self._seconds_to_stop()))
            self.whereabouts.at(BACKWARD, step)
            self.engine.backward(nan_unless_finite(loss, aux["per_sample_loss_B"]))
            self.engine.step()  # updates after the last micro-batch only, and not if the gradient norm is not finite
        result = sums.wait(grad_norm=float(self.engine.get_global_grad_norm()))
        due = self.log.is_due(step)
        movement = self.teacher.follow(momentum, measured=due) if result.is_finite else {}
        rates = {"step": step, "epoch": batch.epoch, "lr": rate, "ema_momentum": momentum}
        self.log.step(rates | result.row() | movement, due=due or not result.is_finite)
        if result.is_finite:
            self.faulty.forget()
        else:
            # publish the checkpoint in flight, which is from before: `skip` may end the run
            last_saved = self.checkpoints.settle()
            self.faulty.skip(step, result.fault, micro_batches, last_saved=last_saved)
        return result

    def _seconds_to_stop(self) -> float:
        """Estimates the seconds from now to a saved stop: the longest probe, two steps, two saves."""
        return self.watch.longest_probe_s + 2 * (self.log.seconds_per_step + self.checkpoints.longest_save_s)


@dataclass(frozen=True)
class StepResult:
    """The result of a step, equal on all ranks.

    loss: mean over the global batch. by_group: mean losses by strategy and corpus, by their keys in a metrics row.
    grad_norm: norm of the averaged gradient before clipping. stop_requests: number of ranks with a stop request.
    """

    loss: float
    by_group: dict[str, float]
    grad_norm: float
    stop_requests: int

    @property
    def fault(self) -> str:
        """Reason for a skipped update ("the loss is nan"); "" if it was applied."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return "" if math.isfinite(self.grad_norm) else f"the norm of the gradient is {self.grad_norm}"

    @property
    def is_finite(self) -> bool:
        """True if the update was applied."""
        return not self.fault

    def row(self) -> dict[str, float]:
        """Returns this result's part of a metrics row."""
        if not self.is_finite:
            return {"skipped": 1}
        return {"skipped": 0, "loss": self.loss, "grad_norm": self.grad_norm} | self.by_group


class LossSums:
    """Sums and counts of losses by strategy and corpus, over micro-batches, then over all ranks.

    The host does not wait for the device before `wait`.

    Args:
        corpora: names of the stream's corpora; a single corpus gets no loss of its own.
    """

    def __init__(self, corpora: Sequence[str], device: torch.device):
        self._corpora = tuple(corpora) if len(corpora) > 1 else ()
        self._sums_2G = torch.zeros(2, len(STRATEGIES) + len(self._corpora), dtype=torch.float64, device=device)
        self._total = self._sums_2G
        self._work: dist.Work | None = None

    def add(self, batch: Batch, loss_B: Tensor) -> None:
        """Adds the losses [B] of a micro-batch on the device."""
        groups_GB = one_hot(batch.strategy, len(STRATEGIES))
        if self._corpora:
            names = [uid.partition("/")[0] for uid in batch.uids]
            index_B = torch.tensor([self._corpora.index(name) for name in names])
            of_corpora_CB = one_hot(index_B.to(loss_B.device, non_blocking=True), len(self._corpora))
            groups_GB = torch.cat([groups_GB, of_corpora_CB])
        # a matrix product adds in a fixed order on every device; index_add does not
        self._sums_2G += torch.stack([groups_GB @ loss_B.detach().double(), groups_GB.sum(1)])

    def start_all_reduce(self, *, stop_requested: bool) -> None:
        """Starts the sum of losses and stop requests over all ranks."""
        # filled on the device: copying a Python number there would make the host wait
        request = self._sums_2G.new_full((1,), float(stop_requested))
        self._total = torch.cat([self._sums_2G.flatten(), request])
        self._work = dist.all_reduce(self._total, async_op=True) if dist.get_world_size() > 1 else None

    def wait(self, *, grad_norm: float) -> StepResult:
        """Waits for the sum and returns the result of the step."""
        if self._work is not None:
            self._work.wait()
        *numbers, stop_requests = self._total.tolist()
        sums, counts = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        names = [*(f"loss_{name}" for name in STRATEGIES), *(f"mix/{name}/loss" for name in self._corpora)]
        by_group = {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n}
        # every crop has exactly one strategy, so these sums cover the batch
        loss = sum(sums[: len(STRATEGIES)]) / sum(counts[: len(STRATEGIES)])
        return StepResult(loss, by_group, grad_norm, int(stop_requests))


def nan_unless_finite(loss: Tensor, loss_B: Tensor) -> Tensor:
    """Returns the loss, or NaN if a crop's loss is not finite; the host does not wait for the device.

    NaN reaches the gradients, and their sum over ranks, so DeepSpeed skips the update on every rank.
    """
    is_finite = loss.detach().isfinite() & loss_B.isfinite().all()
    return loss * torch.where(is_finite, 1.0, math.nan)


def one_hot(index_B: Tensor, count: int) -> Tensor:
    """Returns the membership [count, B] of B crops in groups, float64."""
    return (torch.arange(count, device=index_B.device)[:, None] == index_B[None]).double()
