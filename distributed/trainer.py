"""The training loop, handed parts that others built.

A step: for each micro-batch forward and backward, one reduction of the losses (and of the wish to stop), the optimiser,
the teacher. The learning rate, the teacher's momentum, the samples and their masks are pure functions of the step, so a
resumed run repeats nothing and ends with the same bits.

Steps are counted from 0. A row with step s of the training holds the loss of global batch s; a row of diagnostics looks
at the weights after s steps, before batch s.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.batches import Batch
from data.stream import Stream
from distributed.checkpoint import CheckpointStore
from distributed.diagnose import diagnose
from distributed.engine import set_learning_rate
from distributed.experiment import Experiment
from distributed.faulty_steps import FaultySteps
from distributed.guard import Alarm, CollapseGuard
from distributed.host_snapshot import HostSnapshot, engine_writes_to
from distributed.observe import StepObserver
from distributed.pace import Pace, Yardstick, memory
from distributed.preemption import StopRequest
from distributed.probe_set import ProbeSet
from distributed.respond import Responder
from distributed.rollback import Rollback, rate_factor, snapshot_rollbacks
from distributed.run_directory import RunDirectory
from distributed.session_state import ENGINE_FOLDER, snapshot_state
from distributed.stream_counts import StreamCounts
from distributed.teacher import Teacher
from distributed.telemetry import Sink
from distributed.topology import Topology
from distributed.update import update
from distributed.watchdog import CHECKPOINT, DIAGNOSTICS, METRICS, PROBES, TEACHER, Whereabouts
from pupujepa.config import to_yaml
from pupujepa.ema import ema_momentum
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep
from pupujepa.schedules import learning_rate

if TYPE_CHECKING:
    from distributed.in_loop_probe import InLoopProbe

logger = logging.getLogger(__name__)


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
    yardstick: Yardstick
    guard: CollapseGuard = field(default_factory=lambda: CollapseGuard(total_steps=0))
    rollbacks: tuple[Rollback, ...] = ()
    quality: "InLoopProbe | None" = None


class Ending(Enum):
    """How a session ended: with the whole run, or asked to stop before."""

    RUN = auto()
    STOPPED = auto()


class Trainer:
    """Trains from `first_step` to the end, or until it is asked to stop.

    Args:
        whereabouts: is told where the training stands.
    """

    def __init__(
        self,
        experiment: Experiment,
        parts: Parts,
        *,
        first_step: int,
        run_root: Path,
        whereabouts: Whereabouts | None = None,
    ):
        self.experiment, self.parts = experiment, parts
        self._whereabouts = whereabouts or Whereabouts()
        self.step = first_step
        self._snapshot = HostSnapshot(copies=experiment.checkpoint.background)
        self.total_steps = experiment.train.steps
        self.pace = Pace()
        self.last_diagnostics: dict[str, float] = {}
        self._window = Pace()
        self._counts = StreamCounts(parts.stream, device=parts.device)
        self._faulty = FaultySteps(experiment.faults, run_root, rank=parts.topology.rank)
        self.rollbacks = parts.rollbacks
        self.rate_factor = rate_factor(parts.rollbacks)
        self._longest_probe_s = 0.0
        self._responder = Responder(RunDirectory(run_root), parts.guard)

    def run(self, stop: StopRequest) -> Ending:
        """Returns how it ended, with the finished steps saved."""
        batches: Iterator[Batch] = iter(self.parts.stream)
        while self.step < self.total_steps:
            self._diagnose_when_due()
            self._probe_when_due()
            stops = self._train_step(batches, stop)
            self.step += 1
            if stops:
                ranks = self.parts.topology.world_size
                logger.warning("asked to stop (%d of %d ranks): saving step %d", stops, ranks, self.step)
                self.save()
                return Ending.STOPPED
            self.parts.store.poll()
            # weights that bring no finite loss must not push those out that did
            if self.step % self.experiment.checkpoint.every == 0 and not self._faulty.in_row:
                self.save(wait=False)
        self.save()
        if self.parts.probes is not None:
            self._diagnose()
        self._probe_when_due()
        return Ending.RUN

    def save(self, *, wait: bool = True, again: bool = False) -> None:
        """Makes a checkpoint of the finished steps, unless there is one; all ranks together.

        Args:
            wait: until it is there; else it is written while training goes on, and `store.poll` finishes it.
            again: also when there is one.
        """
        store = self.parts.store
        self._whereabouts.at(CHECKPOINT, self.step)
        if again or not store.holds(self.step):
            store.begin(self.step, self.write_checkpoint, self.checkpoint_facts())
        if wait:
            store.finish(self.step)
        elif not self.experiment.checkpoint.background:
            store.poll(wait=True)

    def write_checkpoint(self, directory: Path) -> Callable[[], None]:
        """Takes a snapshot of this rank's part of a checkpoint of the finished steps; all ranks together.

        Returns:
            What writes it, in any thread. The next snapshot waits for it.
        """
        parts, snapshot = self.parts, self._snapshot
        # it uses the same memory
        parts.store.poll(wait=True)
        snapshot.begin()
        with engine_writes_to(parts.engine, snapshot):
            parts.engine.save_checkpoint(directory, tag=ENGINE_FOLDER, save_latest=False)
        snapshot_state(
            snapshot,
            directory,
            rank=parts.topology.rank,
            stream=parts.stream,
            teacher=parts.teacher,
            config_yaml=to_yaml(self.experiment),
        )
        if parts.topology.is_first:
            snapshot_rollbacks(snapshot, directory, self.rollbacks)
        return snapshot.write

    def checkpoint_facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says beside its files: who can load it."""
        return {"world_size": self.parts.topology.world_size, "zero_stage": self.experiment.engine.zero_stage}

    def adopt(self, rollback: Rollback) -> None:
        """Goes on from other weights, which are saved at once under the present step; all ranks together."""
        self.rollbacks = (*self.rollbacks, rollback)
        self.rate_factor = rate_factor(self.rollbacks)
        self.save(again=True)

    def _train_step(self, batches: Iterator[Batch], stop: StopRequest) -> int:
        started, waited_before = time.perf_counter(), self.parts.stream.counters()["wait_s"]
        experiment = self.experiment
        rate = learning_rate(self.step, self.total_steps, experiment.schedule, branch=experiment.branch)
        rate *= self.rate_factor
        momentum = ema_momentum(self.step, experiment.horizon_steps, experiment.ema)
        set_learning_rate(self.parts.engine, rate)
        # a faulty step is always told of, so that none is lost to a count when the run is continued
        due = self.step % experiment.telemetry.log_every == 0 or self.step + 1 == self.total_steps
        observer = self._observer() if due else None
        done = update(
            self.parts.engine,
            batches,
            step=self.step,
            clip_norm=experiment.optimizer.clip_norm,
            asked=partial(stop.asked, self._needed_to_stop_s()),
            whereabouts=self._whereabouts,
            observer=observer,
        )
        logged = due or bool(done.fault)
        self._whereabouts.at(TEACHER, self.step)
        movement = {} if done.fault else self.parts.teacher.follow(momentum, measured=logged)
        seconds = time.perf_counter() - started
        waited_s = self.parts.stream.counters()["wait_s"] - waited_before
        self.pace.add(seconds, waited_s)
        self._window.add(seconds, waited_s)
        if logged:
            learnt = {"loss": done.losses.loss, "grad_norm": done.norm} | movement | done.losses.by_strategy
            if observer is not None and not done.fault:
                learnt |= observer.row()
            self._log(
                {"step": self.step, "epoch": done.micro_batches[-1][0].epoch, "lr": rate, "ema_momentum": momentum}
                | ({"skipped": 1} if done.fault else {"skipped": 0} | learnt)
                | self.parts.stream.mixture()
                | self._speed()
                | memory(self.parts.device)
                | self._counts.since_last()
            )
        if done.fault:
            # what is in flight is from before, and must not be lost if this is the end
            self.parts.store.poll(wait=True)
            last = self.parts.store.last
            self._faulty.skip(self.step, done.fault, done.micro_batches, last_saved=last.step if last else 0)
        else:
            self._faulty.forget()
        return done.losses.stops

    def _needed_to_stop_s(self) -> float:
        """How long before its time is over the run must stop, to have saved by then: a probe, two steps, two saves."""
        step_s = self.pace.seconds / self.pace.steps if self.pace.steps else 0.0
        return self._longest_probe_s + 2 * (step_s + self.parts.store.longest_save_s)

    def _diagnose_when_due(self) -> None:
        every = self.experiment.diagnostics.every
        if self.parts.probes is not None and every and self.step % every == 0:
            self._diagnose()

    def _probe_when_due(self) -> None:
        every = self.experiment.probe.interval(self.total_steps)
        if self.parts.quality is None or not (self.step % every == 0 or self.step == self.total_steps):
            return
        self._whereabouts.at(PROBES, self.step)
        epoch, started = self.step // self.parts.stream.steps_per_epoch, time.perf_counter()
        found = self.parts.quality.measure(self.parts.step, self.parts.model, at=self.step)
        self._longest_probe_s = max(self._longest_probe_s, time.perf_counter() - started)
        self._log({"step": self.step, "epoch": epoch} | found)

    def _diagnose(self) -> None:
        parts = self.parts
        assert parts.probes is not None
        self._whereabouts.at(DIAGNOSTICS, self.step)
        all_crops = self.experiment.diagnostics.takes_all_crops(self.step, total_steps=self.total_steps)
        self.last_diagnostics = diagnose(
            parts.step, parts.model, probes=parts.probes, teacher=parts.teacher, all_crops=all_crops
        )
        epoch = self.step // parts.stream.steps_per_epoch
        row = {"step": self.step, "epoch": epoch} | self.last_diagnostics
        self._responder.answer(self._log(row), self, row)

    def _log(self, row: dict[str, Any]) -> list[Alarm]:
        if not self.parts.topology.is_first:
            return []
        self._whereabouts.at(METRICS, row["step"])
        for sink in self.parts.sinks:
            sink.write(row)
        alarms = self.parts.guard.observe(row)
        for alarm in alarms:
            logger.warning("step %d: %s: %s", row["step"], alarm.name, alarm.sentence)
        return alarms

    def unsaid_counts(self) -> dict[str, float]:
        """What this rank's stream counted since the last row."""
        return self._counts.unsaid()

    def _speed(self) -> dict[str, float]:
        window, self._window = self._window, Pace()
        return self.parts.yardstick.rates(window)

    def _observer(self) -> StepObserver:
        names = [corpus.name for corpus in self.parts.stream.corpora.members]
        return StepObserver(bands=self.experiment.model.grid_bands, corpora=names)
