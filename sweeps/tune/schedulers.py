"""What Tune does with trials on the way, judged by the quality of their probes at equal samples, never by the loss.

The loss does not rank models: a larger one ends at a higher loss and probes better. Probes come at the same numbers of
crops in all trials (sweeps/plan/compose.py), whatever their batch size or their speed.
"""

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from sweeps.plan.plan import Plan
from sweeps.plan.sweep_file import ASHA

QUALITY, SAMPLES = "quality", "samples"


class FairAsha(AsyncHyperBandScheduler):
    """Asynchronous successive halving that never ends a base: all differences refer to it."""

    def __init__(self, bases: frozenset[str], **options: Any):
        super().__init__(**options)
        self._of_base = bases

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        """Counts the result and says whether the trial goes on."""
        verdict = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["trial"] in self._of_base else verdict


def scheduler_of(plan: Plan) -> TrialScheduler | None:
    """Returns the scheduler of a plan; None lets every trial run to its end."""
    schedule = plan.schedule
    if schedule.kind == ASHA:
        return FairAsha(
            frozenset(planned.trial.name for planned in plan.trials if planned.trial.is_base),
            time_attr=SAMPLES,
            metric=QUALITY,
            mode="max",
            grace_period=schedule.every_samples,
            reduction_factor=schedule.reduction_factor,
            # what has been trained to its end is evaluated, however it compares
            max_t=schedule.total_samples - 1,
            stop_last_trials=False,
        )
    return None
