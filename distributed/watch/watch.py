"""The watch over a run: is it learning? It decides when diagnostics and linear probes are due."""

import time
from dataclasses import dataclass
from typing import Protocol

from distributed.engine.teacher import Teacher
from distributed.processes.watchdog import DIAGNOSTICS, PROBES, Whereabouts
from distributed.run.log import RunLog
from distributed.watch.alarms import Alarms
from distributed.watch.config import DiagnosticsConfig, ProbeConfig
from distributed.watch.diagnose import diagnose
from distributed.watch.fixed_crops import FixedCrops
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import TrainingStep


class LinearProbes(Protocol):
    """The interface of distributed/watch/probes.py, whose libraries are slow to import."""

    def measure(self, step: TrainingStep, model: PupuJEPA, *, at: int) -> dict[str, float]:
        """Returns a metrics row of the weights after `at` steps; all ranks call it together."""


@dataclass
class Watch:
    """Looks at the model between steps; all ranks hold one and call its methods together.

    Attributes:
        fixed_crops: crops of the diagnostics; None turns the diagnostics off.
        linear_probes: None turns them off.
        longest_probe_s: seconds of the longest measurement by linear probes.
        last_diagnostics: the newest diagnostics, {} before the first.
    """

    step: TrainingStep
    model: PupuJEPA
    teacher: Teacher
    log: RunLog
    alarms: Alarms
    whereabouts: Whereabouts
    diagnostics: DiagnosticsConfig
    probe: ProbeConfig
    fixed_crops: FixedCrops | None
    linear_probes: LinearProbes | None
    total_steps: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        self.longest_probe_s = 0.0
        self.last_diagnostics: dict[str, float] = {}

    def before_step(self, step: int) -> bool:
        """Runs what is due after `step` finished steps; returns True if the guard stops the run."""
        every = self.diagnostics.every
        stops = bool(every) and step % every == 0 and self._diagnose(step)
        self._probe_if_due(step)
        return stops

    def after_last_step(self, step: int) -> None:
        """Measures the finished model, due or not."""
        self._diagnose(step)
        self._probe_if_due(step)

    def _diagnose(self, step: int) -> bool:
        if self.fixed_crops is None:
            return False
        self.whereabouts.at(DIAGNOSTICS, step)
        all_crops = self.diagnostics.takes_all_crops(step, total_steps=self.total_steps)
        self.last_diagnostics = diagnose(
            self.step, self.model, crops=self.fixed_crops, teacher=self.teacher, all_crops=all_crops
        )
        row = {"step": step, "epoch": step // self.steps_per_epoch} | self.last_diagnostics
        self.log.write(row)
        return self.alarms.respond(row, self.step, self.model, self.fixed_crops)

    def _probe_if_due(self, step: int) -> None:
        every = self.probe.interval(self.total_steps)
        if self.linear_probes is None or (step % every and step != self.total_steps):
            return
        self.whereabouts.at(PROBES, step)
        started = time.perf_counter()
        found = self.linear_probes.measure(self.step, self.model, at=step)
        self.longest_probe_s = max(self.longest_probe_s, time.perf_counter() - started)
        self.log.write({"step": step, "epoch": step // self.steps_per_epoch} | found)
