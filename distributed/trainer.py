"""The training loop, handed parts that others built.

A step: for each micro-batch forward and backward, one reduction of the losses (and of the wish to stop), the optimiser,
the teacher. The learning rate, the teacher's momentum, the samples and their masks are pure functions of the step, so a
resumed run repeats nothing and ends with the same bits.

Steps are counted from 0. A row with step s of the training holds the loss of global batch s; a row of diagnostics looks
at the weights after s steps, before batch s.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.batches import Batch
from data.stream import Stream
from distributed.checkpoint import CheckpointStore
from distributed.diagnose import diagnose
from distributed.engine import gradient_norm, set_learning_rate
from distributed.experiment import Experiment
from distributed.guard import Alarm, CollapseGuard
from distributed.preemption import StopRequest
from distributed.probe_set import ProbeSet
from distributed.respond import Responder
from distributed.rollback import Rollback, rate_factor, write_rollbacks
from distributed.run_directory import RunDirectory, write_json
from distributed.session_state import ENGINE_FOLDER, write_state
from distributed.stream_counts import StreamCounts
from distributed.teacher import Teacher
from distributed.telemetry import Sink
from distributed.topology import Topology
from pupujepa.config import to_yaml
from pupujepa.ema import ema_momentum
from pupujepa.errors import UserError
from pupujepa.masks import STRATEGIES
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep
from pupujepa.schedules import learning_rate

logger = logging.getLogger(__name__)


class DivergedError(UserError):
    """The loss or the gradient is no number any more."""


@dataclass(frozen=True)
class Parts:
    """What a trainer works with; `engine` is a DeepSpeedEngine around `step`. Only rank 0 has sinks."""

    topology: Topology
    device: torch.device
    engine: Any
    step: TrainingStep
    model: PupuJEPA
    teacher: Teacher
    stream: Stream
    store: CheckpointStore
    probes: ProbeSet | None
    sinks: Sequence[Sink]
    guard: CollapseGuard = field(default_factory=lambda: CollapseGuard(total_steps=0))
    rollbacks: tuple[Rollback, ...] = ()


@dataclass
class Pace:
    """Time spent in training steps and waiting for data, without diagnostics and checkpoints."""

    steps: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0

    def add(self, seconds: float, waited_s: float) -> None:
        """Counts one step."""
        self.steps += 1
        self.seconds += seconds
        self.waited_s += waited_s


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of a global batch over all ranks, and how many ranks were asked to stop."""

    loss: float
    by_strategy: dict[str, float]
    stops: int


class Trainer:
    """Trains from `first_step` to the end, or until it is asked to stop."""

    def __init__(self, experiment: Experiment, parts: Parts, *, first_step: int, run_root: Path):
        self.experiment, self.parts = experiment, parts
        self.step = self._saved_step = first_step
        self.total_steps = experiment.train.steps
        self.pace = Pace()
        self.last_diagnostics: dict[str, float] = {}
        self._window = Pace()
        self._counts = StreamCounts(parts.stream, device=parts.device)
        self._run_root = run_root
        self.rollbacks = parts.rollbacks
        self.rate_factor = rate_factor(parts.rollbacks)
        self._responder = Responder(RunDirectory(run_root), parts.guard)

    def run(self, stop: StopRequest) -> bool:
        """Returns whether the run is finished; False when it was stopped, with the finished steps saved."""
        batches: Iterator[Batch] = iter(self.parts.stream)
        while self.step < self.total_steps:
            self._diagnose_when_due()
            stops = self._train_step(batches, stop)
            self.step += 1
            if stops:
                logger.warning(
                    "asked to stop (%d of %d ranks): saving step %d", stops, self.parts.topology.world_size, self.step
                )
                self.save()
                return False
            if self.step % self.experiment.checkpoint.every == 0:
                self.save()
        self.save()
        if self.parts.probes is not None:
            self._diagnose()
        return True

    def save(self) -> None:
        """Makes a checkpoint of the finished steps, unless there is one; all ranks together."""
        if self.step == self._saved_step:
            return
        started = time.perf_counter()
        checkpoint = self.parts.store.save(self.step, self.write_checkpoint, self.checkpoint_facts())
        self._saved_step = self.step
        logger.info("saved %s in %.1f s", checkpoint.name, time.perf_counter() - started)

    def write_checkpoint(self, directory: Path) -> None:
        """Writes this rank's part of a checkpoint of the finished steps; all ranks together."""
        parts = self.parts
        parts.engine.save_checkpoint(directory, tag=ENGINE_FOLDER, save_latest=False)
        write_state(
            directory,
            rank=parts.topology.rank,
            stream=parts.stream,
            teacher=parts.teacher,
            config_yaml=to_yaml(self.experiment),
        )
        if parts.topology.is_first:
            write_rollbacks(directory, self.rollbacks)

    def checkpoint_facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says beside its files: who can load it."""
        return {"world_size": self.parts.topology.world_size, "zero_stage": self.experiment.engine.zero_stage}

    def adopt(self, rollback: Rollback) -> None:
        """Goes on from other weights, which are saved at once under the present step; all ranks together."""
        self.rollbacks = (*self.rollbacks, rollback)
        self.rate_factor = rate_factor(self.rollbacks)
        self._saved_step = -1
        self.save()

    def _train_step(self, batches: Iterator[Batch], stop: StopRequest) -> int:
        started, waited_before = time.perf_counter(), self.parts.stream.counters()["wait_s"]
        experiment = self.experiment
        rate = learning_rate(self.step, self.total_steps, experiment.schedule, branch=experiment.branch)
        rate *= self.rate_factor
        momentum = ema_momentum(self.step, experiment.horizon_steps, experiment.ema)
        set_learning_rate(self.parts.engine, rate)
        losses, norm, batch = self._optimise(batches, stop)
        logged = self.step % experiment.telemetry.log_every == 0 or self.step + 1 == self.total_steps
        movement = self.parts.teacher.follow(momentum, measured=logged)
        seconds = time.perf_counter() - started
        waited_s = self.parts.stream.counters()["wait_s"] - waited_before
        self.pace.add(seconds, waited_s)
        self._window.add(seconds, waited_s)
        if logged:
            schedule = {"lr": rate, "ema_momentum": momentum, "grad_norm": norm}
            self._log(
                {"step": self.step, "epoch": batch.epoch, "loss": losses.loss}
                | schedule
                | movement
                | losses.by_strategy
                | self.parts.stream.mixture()
                | self._speed()
                | self._counts.since_last()
            )
        return losses.stops

    def _optimise(self, batches: Iterator[Batch], stop: StopRequest) -> tuple[StepLosses, float, Batch]:
        engine = self.parts.engine
        sums = torch.zeros(2, len(STRATEGIES), dtype=torch.float64, device=self.parts.device)
        per_rank: list[tuple[Batch, Tensor]] = []
        accumulation = engine.gradient_accumulation_steps()
        norm = 0.0
        for micro in range(accumulation):
            batch = next(batches)
            assert batch.step == self.step, f"the stream is at step {batch.step}, the trainer at {self.step}"
            on_device = batch.to(self.parts.device)
            loss, aux = engine(on_device.mel, on_device.context, on_device.target)
            engine.backward(loss)
            sums += _sums_by_strategy(aux["per_sample_loss_B"], on_device.strategy)
            per_rank.append((batch, aux["per_sample_loss_B"]))
            if micro + 1 == accumulation:
                losses = _reduce(sums, stop)
                if not math.isfinite(losses.loss):
                    self._give_up(f"the loss is {losses.loss}", per_rank)
                if not engine.zero_optimization_stage():
                    norm = gradient_norm(engine)
            engine.step()
        if engine.zero_optimization_stage():
            norm = gradient_norm(engine)
        if not math.isfinite(norm):
            self._give_up(f"the norm of the gradient is {norm}", per_rank)
        return losses, norm, batch

    def _give_up(self, what: str, per_rank: list[tuple[Batch, Tensor]]) -> None:
        """Leaves a file per rank with what went in, then raises; every rank comes here, for the numbers are shared."""
        snapshot = [
            {"uids": batch.uids, "crop_starts": batch.crop_starts.tolist(), "loss": [str(x) for x in loss_B.tolist()]}
            for batch, loss_B in per_rank
        ]
        path = self._run_root / f"diverged-step-{self.step:07d}-rank-{self.parts.topology.rank}.json"
        write_json(path, {"step": self.step, "what": what, "micro_batches": snapshot})
        saved = self.parts.store.steps()
        raise DivergedError(
            f"training diverged: {what} at step {self.step} (its samples are in {path}); the checkpoint of "
            f"step {saved[0] if saved else 0} is from before; lower schedule.peak_lr or optimizer.clip_norm in a new "
            f"run, or use engine.precision=fp32"
        )

    def _diagnose_when_due(self) -> None:
        every = self.experiment.diagnostics.every
        if self.parts.probes is not None and every and self.step % every == 0:
            self._diagnose()

    def _diagnose(self) -> None:
        parts = self.parts
        assert parts.probes is not None
        self.last_diagnostics = diagnose(parts.step, parts.model, probes=parts.probes, teacher=parts.teacher)
        epoch = self.step // parts.stream.steps_per_epoch
        row = {"step": self.step, "epoch": epoch} | self.last_diagnostics
        self._responder.answer(self._log(row), self, row)

    def _log(self, row: dict[str, Any]) -> list[Alarm]:
        if not self.parts.topology.is_first:
            return []
        for sink in self.parts.sinks:
            sink.write(row)
        alarms = self.parts.guard.observe(row)
        for alarm in alarms:
            logger.warning("step %d: %s: %s", row["step"], alarm.name, alarm.sentence)
        return alarms

    def _speed(self) -> dict[str, float]:
        window, self._window = self._window, Pace()
        return {
            "crops_per_s": window.steps * self.experiment.stream.global_batch / window.seconds,
            "step_s": window.seconds / window.steps,
            "data_wait_s": window.waited_s / window.steps,
        }


def _sums_by_strategy(loss_B: Tensor, strategy_B: Tensor) -> Tensor:
    """Sums of losses and counts of crops per strategy, [2, strategies]; by products, which have a fixed order."""
    chosen_BS = (strategy_B[:, None] == torch.arange(len(STRATEGIES), device=strategy_B.device)).double()
    return torch.stack([loss_B.double() @ chosen_BS, chosen_BS.sum(0)])


def _reduce(sums: Tensor, stop: StopRequest) -> StepLosses:
    asked = torch.tensor([float(stop.received is not None)], dtype=torch.float64, device=sums.device)
    total = torch.cat([sums.flatten(), asked])
    dist.all_reduce(total)
    *numbers, stops = total.tolist()
    losses, counts = numbers[: len(STRATEGIES)], numbers[len(STRATEGIES) :]
    by_strategy = {f"loss_{name}": s / n for name, s, n in zip(STRATEGIES, losses, counts, strict=True) if n}
    return StepLosses(sum(losses) / sum(counts), by_strategy, int(stops))
