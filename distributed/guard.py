"""The guard: reads the rows of a run as they are logged and says, once each, when a pattern of collapse shows.

The thresholds are those of the report, so that the log and the page never disagree.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from distributed.report.collapse import (
    COSINE_ALARM,
    FALL_ALARM,
    LOSS_FALL_ALARM,
    LOSS_FALL_STEPS,
    LOSS_RISE_ALARM,
    STD_ALARM,
)

_RANK, _EXPLAINED = "diag/effective_rank_teacher", "diag/explained_variance"


class CollapseGuard:
    """Feed it every row in order; rows of an earlier session too, so that maxima are those of the whole run."""

    def __init__(self) -> None:
        self._losses: deque[tuple[int, float]] = deque()
        self._lowest_loss = float("inf")
        self._highest: dict[str, float] = {}
        self._said: set[str] = set()

    def observe(self, row: Mapping[str, Any]) -> list[str]:
        """Returns the warnings that this row gives rise to and that were not given before."""
        if row.get("loss") is not None:
            self._remember_loss(row["step"], row["loss"])
        alarms = self._alarms(row) if row.get(_RANK) is not None else {}
        new = [sentence for name, sentence in alarms.items() if name not in self._said]
        self._said |= set(alarms)
        return new

    def _remember_loss(self, step: int, loss: float) -> None:
        self._losses.append((step, loss))
        self._lowest_loss = min(self._lowest_loss, loss)
        while step - self._losses[0][0] > LOSS_FALL_STEPS:
            self._losses.popleft()

    def _alarms(self, row: Mapping[str, Any]) -> dict[str, str]:
        alarms = {}
        if row.get("diag/std_teacher", 1.0) < STD_ALARM:
            alarms["spread"] = f"the teacher's features have shrunk: spread {row['diag/std_teacher']:.2f} < {STD_ALARM}"
        if row.get("diag/cosine_teacher", 0.0) > COSINE_ALARM:
            alarms["angle"] = f"features point one way: mean cosine {row['diag/cosine_teacher']:.2f} > {COSINE_ALARM}"
        if row["step"] > 0 and row.get("diag/teacher_moved") == 0:
            alarms["teacher"] = "the teacher has not moved from its first weights: its average is not updated"
        fallen = [key for key in (_RANK, _EXPLAINED) if self._has_fallen(key, row.get(key), row["step"])]
        if fallen and self._loss_fell():
            alarms["joint fall"] = (
                f"the loss fell while {' and '.join(k.removeprefix('diag/') for k in fallen)} lies more than "
                f"{FALL_ALARM:.0%} below its maximum: the pattern of a partial collapse"
            )
        if fallen and self._losses and self._losses[-1][1] > (1 + LOSS_RISE_ALARM) * self._lowest_loss:
            alarms["rise"] = f"the loss is {LOSS_RISE_ALARM:.0%} above its minimum while {fallen[0]} falls"
        return alarms

    def _has_fallen(self, key: str, value: float | None, step: int) -> bool:
        if value is None:
            return False
        if step > 0:  # what an untrained network has was never learnt
            self._highest[key] = max(self._highest.get(key, 0.0), value)
        # before anything was explained, nothing can be lost
        highest = self._highest.get(key, 0.0)
        return highest > 0 and value < (1 - FALL_ALARM) * highest

    def _loss_fell(self) -> bool:
        return len(self._losses) > 1 and self._losses[-1][1] < (1 - LOSS_FALL_ALARM) * self._losses[0][1]
