"""Optuna's search over the axes of a sweep; each suggestion becomes a planned trial.

A search has no state beside its trials: plan.json holds the suggestions, the run directories the results. A resumed
search tells Optuna every finished trial, runs the unfinished ones, and asks for the rest.
"""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sweeps.plan.compose import Planner
from sweeps.plan.plan import SWEEP_NAME, read_plan, write_plan
from sweeps.plan.points import Point, Setting, draw_point, settings, trial_at
from sweeps.plan.sweep_file import AxisConfig, read_sweep
from sweeps.trials.record import is_finished, read_record, read_trial_results
from sweeps.trials.trial import final_metrics

SCORE = "score"  # mean over the tasks, on validation


class PlanningSearch(Searcher):
    """A searcher that gives Tune the unfinished trials of the plan, then those that Optuna suggests.

    Optuna needs one space, so it also suggests axes with a condition that does not hold; the trial leaves them out.

    Attributes:
        left: number of trials that Tune has still to ask for.
    """

    def __init__(self, out: Path):
        super().__init__(metric=SCORE, mode="max")
        self._out = out
        self._sweep = read_sweep(out / SWEEP_NAME)
        plan = read_plan(out)
        assert plan.search is not None
        self._search = plan.search
        by_axis = settings(self._sweep)
        space = {n: distribution(axis, [s.value for s in by_axis[n]]) for n, axis in self._sweep.axes.items()}
        self._optuna = OptunaSearch(space=space, metric=SCORE, mode="max", seed=0)
        self._known = {planned.trial.name: planned.drawn for planned in plan.trials}
        self._running: dict[str, str] = {}
        self._suggested: set[str] = set()
        self._waiting: deque[str] = deque()
        for planned in plan.trials:
            if is_finished(planned, out):
                score = final_metrics(read_trial_results(planned, out), split="valid")[SCORE]
                self._tell(planned.drawn, score)
            elif not read_record(planned, out).is_over:
                self._waiting.append(planned.trial.name)
        found = len(plan.trials) - plan.search.planned_before
        self.left = len(self._waiting) + max(0, plan.search.draws - found)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Returns the configuration of a Tune trial; None to ask again later."""
        if self._waiting:
            name = self._waiting.popleft()
        else:
            drawn = self._optuna.suggest(trial_id)
            assert drawn is not None  # Optuna has no limit here
            name = self._plan(drawn)
            if name in self._running.values():
                # Optuna repeats a suggestion that still runs: ask again when its score is known
                self._optuna.on_trial_complete(trial_id, error=True)
                return None
            self._suggested.add(trial_id)
        self._running[trial_id] = name
        return {"trial": name, "out": str(self._out)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Gives Optuna the score of a suggestion, or its failure."""
        name, score = self._running.pop(trial_id), (result or {}).get(SCORE)
        if trial_id in self._suggested:
            # without a score it failed, or the scheduler ended it while it was running
            failed = score is None and (result or {}).get("status") != "running"
            self._optuna.on_trial_complete(trial_id, result, error=failed)
        elif score is not None:
            self._tell(self._known[name], score)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the plan and the run directories are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: see `save`."""

    def _tell(self, drawn: dict[str, Any], score: float) -> None:
        if drawn:
            self._optuna.add_evaluated_point(drawn, score)

    def _plan(self, drawn: dict[str, Any]) -> str:
        """Adds the trial of a suggestion to the plan; returns its name, or that of the one it would repeat."""
        plan = read_plan(self._out)
        planner = Planner(self._sweep, plan.launch, inputs=self._search.inputs, known=plan.trials)
        trial = trial_at(self._sweep, self._point(drawn), self._sweep.seeds[0], shared=self._search.shared)
        planned = planner.add(trial, drawn=drawn)
        trials = tuple(planner.planned.values())
        write_plan(replace(plan, trials=trials, same_as=plan.same_as | planner.same_as), self._out)
        self._known[planned.trial.name] = planned.drawn
        return planned.trial.name

    def _point(self, drawn: dict[str, Any]) -> Point:
        by_axis = settings(self._sweep)

        def choose(name: str, axis: AxisConfig) -> Setting | float:
            return drawn[name] if axis.is_range else next(s for s in by_axis[name] if s.value == drawn[name])

        return draw_point(self._sweep, choose)


def distribution(axis: AxisConfig, labels: list[str]) -> BaseDistribution:
    """Returns Optuna's distribution of an axis: its labels, or its range of numbers."""
    if axis.is_range:
        assert axis.low is not None and axis.high is not None
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    return CategoricalDistribution(labels)
