"""The guard: reads the rows of the log and gives an alarm, once, for each pattern of collapse.

The report reads the same thresholds from the run's configuration. watch/alarms.py acts on the alarms.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distributed.watch.config import PROBE_MEAN, GuardConfig

_RANK, _EXPLAINED = "diag/effective_rank_teacher", "diag/explained_variance"


@dataclass(frozen=True)
class Alarm:
    """A pattern of collapse: its fixed name, and a sentence with the numbers."""

    name: str
    sentence: str


class CollapseGuard:
    """Detector of collapse; feed it every row of the run in order, also those of earlier sessions."""

    def __init__(self, config: GuardConfig, *, total_steps: int):
        self.config, self._total_steps = config, total_steps
        self._losses: deque[tuple[int, float]] = deque()  # (step, loss) of the last loss_fall_steps
        self._lowest_loss = float("inf")
        self._highest: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        self._said: set[str] = set()

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Returns the new alarms of this row."""
        if row.get("loss") is not None:
            self._losses.append((row["step"], row["loss"]))
            self._lowest_loss = min(self._lowest_loss, row["loss"])
            while row["step"] - self._losses[0][0] > self.config.loss_fall_steps:
                self._losses.popleft()
        for key in (_RANK, _EXPLAINED, PROBE_MEAN):
            value = row.get(key)
            if value is not None:
                self._newest[key] = value
                if row["step"] > 0:  # an untrained network has learnt nothing that it could lose
                    self._highest[key] = max(self._highest.get(key, value), value)
        # between diagnostics nothing new is known
        alarms = [*self._state_alarms(row), *self._trend_alarms()] if row.get(_RANK) is not None else []
        new = [alarm for alarm in alarms if alarm.name not in self._said]  # once a run, not at every row
        self._said |= {alarm.name for alarm in alarms}
        return new

    def _state_alarms(self, row: Mapping[str, Any]) -> Iterator[Alarm]:
        """Yields the alarms of the diagnostics of one step."""
        config, step = self.config, row["step"]
        std, cosine, explained = row.get("diag/std_teacher"), row.get("diag/cosine_teacher"), row.get(_EXPLAINED)
        distance = row.get("diag/teacher_student_distance")
        if std is not None and std < config.std_below:
            yield Alarm("spread", f"the teacher's features have shrunk: spread {std:.2f} < {config.std_below}")
        if cosine is not None and cosine > config.cosine_above:
            yield Alarm("angle", f"features point one way: mean cosine {cosine:.2f} > {config.cosine_above}")
        # before the first step teacher and student are equal by construction
        if step > 0 and row.get("diag/teacher_moved") == 0:
            told = "the teacher has not moved from its first weights: its average is not updated"
            yield Alarm("teacher stands", told)
        if step > 0 and distance is not None and distance < config.distance_below:
            yield Alarm(
                "teacher copies",
                f"the teacher equals the student (relative distance {distance:.1e}): without inertia nothing keeps "
                f"the targets from becoming whatever is easy to predict; look at ema.start and ema.end",
            )
        late = step >= max(config.unexplained_after * self._total_steps, config.unexplained_steps)
        if late and explained is not None and explained <= config.unexplained_below:
            yield Alarm(
                "unexplained",
                f"the prediction explains nothing beyond a constant: explained variance {explained:.3f} <= "
                f"{config.unexplained_below}, {step / self._total_steps:.0%} into the run",
            )

    def _trend_alarms(self) -> Iterator[Alarm]:
        """Yields the alarms of the history of the run."""
        config, highest, newest, losses = self.config, self._highest, self._newest, self._losses
        # explained variance that was never positive cannot fall
        fallen = [
            key
            for key in (_RANK, _EXPLAINED)
            if key in newest and (most := highest.get(key, 0.0)) > 0 and newest[key] < (1 - config.fall) * most
        ]
        if fallen and len(losses) > 1 and losses[-1][1] < (1 - config.loss_fall) * losses[0][1]:
            names = " and ".join(key.removeprefix("diag/") for key in fallen)
            yield Alarm(
                "joint fall",
                f"the loss fell while {names} lies more than {config.fall:.0%} below its maximum: the pattern of "
                f"a partial collapse",
            )
        if PROBE_MEAN in highest and newest[PROBE_MEAN] < highest[PROBE_MEAN] - config.probe_fall:
            fallen.append(PROBE_MEAN)
        if fallen and losses and losses[-1][1] > (1 + config.loss_rise) * self._lowest_loss:
            what = fallen[0].removeprefix("diag/").replace(PROBE_MEAN, "the mean of the probes")
            yield Alarm("loss rise", f"the loss is {config.loss_rise:.0%} above its minimum while {what} falls")
