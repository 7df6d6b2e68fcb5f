"""The guard: reads the rows of the log and gives an alarm, once, for each pattern of collapse.

The report reads the same thresholds from the run's configuration. watch/alarms.py acts on the alarms.
"""

from collections import deque
from collections.abc import Mapping
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
        self._losses: deque[tuple[int, float]] = deque()
        self._lowest_loss = float("inf")
        self._highest: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        self._said: set[str] = set()

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Returns the new alarms of this row."""
        if row.get("loss") is not None:
            self._remember_loss(row["step"], row["loss"])
        for key in (_RANK, _EXPLAINED, PROBE_MEAN):
            self._remember(key, row.get(key), row["step"])
        alarms = self._alarms(row) if row.get(_RANK) is not None else []
        new = [alarm for alarm in alarms if alarm.name not in self._said]
        self._said |= {alarm.name for alarm in alarms}
        return new

    def _remember_loss(self, step: int, loss: float) -> None:
        self._losses.append((step, loss))
        self._lowest_loss = min(self._lowest_loss, loss)
        while step - self._losses[0][0] > self.config.loss_fall_steps:
            self._losses.popleft()

    def _remember(self, key: str, value: float | None, step: int) -> None:
        if value is None:
            return
        self._newest[key] = value
        if step > 0:  # an untrained network has learnt nothing that it could lose
            self._highest[key] = max(self._highest.get(key, value), value)

    def _alarms(self, row: Mapping[str, Any]) -> list[Alarm]:
        found = [*self._state_alarms(row), *self._trend_alarms()]
        return [Alarm(name, sentence) for name, sentence in found]

    def _state_alarms(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Returns the alarms of the diagnostics of one step."""
        config, found = self.config, []
        std, cosine = row.get("diag/std_teacher"), row.get("diag/cosine_teacher")
        if std is not None and std < config.std_below:
            found.append(("spread", f"the teacher's features have shrunk: spread {std:.2f} < {config.std_below}"))
        if cosine is not None and cosine > config.cosine_above:
            found.append(("angle", f"features point one way: mean cosine {cosine:.2f} > {config.cosine_above}"))
        if row["step"] > 0 and row.get("diag/teacher_moved") == 0:
            found.append(
                ("teacher stands", "the teacher has not moved from its first weights: its average is not updated")
            )
        distance = row.get("diag/teacher_student_distance")
        if row["step"] > 0 and distance is not None and distance < config.distance_below:
            found.append(
                (
                    "teacher copies",
                    f"the teacher equals the student (relative distance {distance:.1e}): without inertia nothing keeps "
                    f"the targets from becoming whatever is easy to predict; look at ema.start and ema.end",
                )
            )
        explained = row.get(_EXPLAINED)
        late = row["step"] >= max(config.unexplained_after * self._total_steps, config.unexplained_steps)
        if late and explained is not None and explained <= config.unexplained_below:
            found.append(
                (
                    "unexplained",
                    f"the prediction explains nothing beyond a constant: explained variance {explained:.3f} <= "
                    f"{config.unexplained_below}, {row['step'] / self._total_steps:.0%} into the run",
                )
            )
        return found

    def _trend_alarms(self) -> list[tuple[str, str]]:
        """Returns the alarms of the history of the run."""
        config, found = self.config, []
        fallen = [key for key in (_RANK, _EXPLAINED) if self._has_fallen(key)]
        names = " and ".join(key.removeprefix("diag/") for key in fallen)
        if fallen and self._loss_fell():
            found.append(
                (
                    "joint fall",
                    f"the loss fell while {names} lies more than {config.fall:.0%} below its maximum: the pattern of "
                    f"a partial collapse",
                )
            )
        if self._probes_have_fallen():
            fallen.append(PROBE_MEAN)
        if fallen and self._losses and self._losses[-1][1] > (1 + config.loss_rise) * self._lowest_loss:
            what = fallen[0].removeprefix("diag/").replace(PROBE_MEAN, "the mean of the probes")
            found.append(("loss rise", f"the loss is {config.loss_rise:.0%} above its minimum while {what} falls"))
        return found

    def _has_fallen(self, key: str) -> bool:
        # explained variance that was never positive cannot fall
        highest = self._highest.get(key, 0.0)
        return highest > 0 and key in self._newest and self._newest[key] < (1 - self.config.fall) * highest

    def _probes_have_fallen(self) -> bool:
        if PROBE_MEAN not in self._highest or PROBE_MEAN not in self._newest:
            return False
        return self._newest[PROBE_MEAN] < self._highest[PROBE_MEAN] - self.config.probe_fall

    def _loss_fell(self) -> bool:
        return len(self._losses) > 1 and self._losses[-1][1] < (1 - self.config.loss_fall) * self._losses[0][1]
