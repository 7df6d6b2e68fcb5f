"""The sweep on Ray Tune: one Tune trial per model, Tune's state in OUT/tune, progress in the driver.

A Tune trial trains one model and runs all evaluations of it. Tune knows only the trial's name and the sweep's
directory; all else comes from the plan, so that a trial can be repeated without Ray. Only the driver and the trials'
processes import this module.

A scheduler compares trials by the quality of their probes at equal samples, never by the loss, which does not rank
models: a larger one ends at a higher loss and probes better. All trials are probed at the same numbers of crops
(sweeps/plan/compose.py), at any batch size and speed.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from pupujepa.errors import UserError
from pupujepa.progress import Progress, write_line
from sweeps.plan.plan import Plan, read_plan
from sweeps.plan.sweep_file import ASHA
from sweeps.trials.record import Record, read_record, read_trial_results, write_record
from sweeps.trials.trial import Site, final_metrics, run_trial

# restarts of a trial after a lost Ray worker (killed, node gone); a trial with a failed command is not restarted
WORKER_LOSSES = 3
QUALITY, SAMPLES = "quality", "samples"


def tune_trial(config: dict[str, Any]) -> None:
    """Runs one planned trial, and those that evaluate its model, in a Ray worker."""
    out = Path(config["out"])
    plan = read_plan(out)
    planned = plan.planned(config["trial"])
    site = Site(out, dict(os.environ))
    run_trial(plan, planned, site=site, report=tune.report)
    for other in plan.looks_at(planned.trial.name):
        run_trial(plan, other, site=site, report=tune.report)


def fit(plan: Plan, out: Path) -> None:
    """Runs every unfinished trial of the plan, as many at once as the cores and GPUs hold.

    The sweep resumes from Tune's state if it belongs to the same set of trials. A search resumes from its trials.

    Raises:
        UserError: no node of this Ray can hold a trial.
    """
    require_resources(plan, ray.nodes())
    # one bundle for all ranks of a trial puts them on one node
    bundle = {"CPU": plan.launch.cpus, "GPU": plan.launch.gpus}
    trainable = tune.with_resources(tune_trial, tune.PlacementGroupFactory([bundle]))
    results = _tuner(plan, out, trainable).fit()
    for result in (results[i] for i in range(len(results))):
        if result.error is not None and result.config:
            _record_lost_worker(plan, out, result.config["trial"], result.error)


def _tuner(plan: Plan, out: Path, trainable: Any) -> tune.Tuner:
    path = out / "tune" / plan.digest
    if plan.search is not None:
        from sweeps.tune.search import PlanningSearch  # here, as it composes experiments and needs Optuna

        search = PlanningSearch(out)
        how = {"search_alg": search, "num_samples": search.left, "scheduler": scheduler_of(plan)}
        return _new_tuner(plan, out, trainable, space={}, tune_config=how)
    # to Tune, a trial with a failed or stopped command is over: starting it again needs a new state, in which
    # finished trials end at once
    records = [read_record(planned, out) for planned in plan.trials]
    over = any(record.failed or record.status == "stopped" for record in records)
    # can_restore accepts the tuner alone, but without the trials' state a restored tuner has no trials
    has_state = any(path.glob("experiment_state-*.json"))
    if tune.Tuner.can_restore(path) and has_state and not over:
        return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
    space = {"trial": tune.grid_search([p.trial.name for p in plan.models]), "out": str(out)}
    return _new_tuner(plan, out, trainable, space=space, tune_config={"scheduler": scheduler_of(plan)})


def _new_tuner(
    plan: Plan, out: Path, trainable: Any, *, space: dict[str, Any], tune_config: dict[str, Any]
) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            trial_name_creator=_name, trial_dirname_creator=_name, reuse_actors=True, **tune_config
        ),
        run_config=tune.RunConfig(
            name=plan.digest,
            storage_path=str(out / "tune"),
            failure_config=tune.FailureConfig(max_failures=WORKER_LOSSES),
            callbacks=[TrialsProgress(out)],
            verbose=0,
        ),
    )


def require_resources(plan: Plan, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if no living node of `ray.nodes()` has the cores and GPUs of one trial."""
    wanted = {"CPU": plan.launch.cpus, "GPU": plan.launch.gpus}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in alive):
        there = "; ".join(f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs" for node in alive)
        raise UserError(
            f"a trial takes {wanted['CPU']:g} cores and {wanted['GPU']:g} GPUs on one node, and no node has them "
            f"({there}), so no trial could start; lower --cpus-per-trial or --gpus-per-trial"
        )


class FairAsha(AsyncHyperBandScheduler):
    """Asynchronous successive halving that never ends a base, because all differences refer to it."""

    def __init__(self, bases: frozenset[str], **options: Any):
        super().__init__(**options)
        self._of_base = bases

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        """Records the result and returns the decision, which is always to continue a base."""
        verdict = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["trial"] in self._of_base else verdict


def scheduler_of(plan: Plan) -> TrialScheduler | None:
    """Returns the scheduler of a plan; None runs every trial to its end."""
    schedule = plan.schedule
    if schedule.kind != ASHA:
        return None
    return FairAsha(
        frozenset(planned.trial.name for planned in plan.trials if planned.trial.is_base),
        time_attr=SAMPLES,
        metric=QUALITY,
        mode="max",
        grace_period=schedule.every_samples,
        reduction_factor=schedule.reduction_factor,
        # a trial that has trained to its end is evaluated, however it compares
        max_t=schedule.total_samples - 1,
        stop_last_trials=False,
    )


class TrialsProgress(tune.Callback):
    """A line for each trial that ends, and on a terminal a bar over all trials.

    Tune pickles its callbacks with its state, so `setup` makes the bar.
    """

    def __init__(self, out: Path):
        self._out = out
        self._progress: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_out": self._out, "_progress": None}

    def setup(
        self,
        stop: tune.Stopper | None = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: Any,
    ) -> None:
        """Starts the bar."""
        plan = read_plan(self._out)
        finished = sum(read_record(p, self._out).status == "finished" for p in plan.trials)
        total = len(plan.trials) if plan.search is None else plan.search.planned_before + plan.search.draws
        self._progress = Progress(total, title="trials", unit="trials", shown=sys.stderr.isatty())
        self._progress.skip(finished)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Writes that a trial starts."""
        self._say(f"{trial.config['trial']}: started")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Shows the newest step of a running trial on the bar."""
        if self._progress is not None and "loss" in result:
            self._progress.say(f"{trial.config['trial']} step {result['step']} loss {result['loss']:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Writes the duration and results of a trial, or the reason of its failure with the end of its log."""
        plan = read_plan(self._out)
        name = trial.config["trial"]
        for planned in (plan.planned(name), *plan.looks_at(name)):
            record = read_record(planned, self._out)
            if plan.schedule.kind == ASHA and record.status in ("waiting", "running"):
                record = write_record(_pruned(record, trial.last_result), planned, self._out)
            metrics = final_metrics(read_trial_results(planned, self._out), split=plan.launch.compare_on)
            found = ", ".join(f"{key.removeprefix('task/')} {value:.3f}" for key, value in metrics.items())
            seconds = record.train_s + record.evaluate_s
            self._say(f"{planned.trial.name}: {record.status} after {seconds:.0f} s: {record.reason or found}", done=1)
            for line in record.log_tail:
                self._say(f"    | {line}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Writes that a trial has no restarts left."""
        self._say(f"{trial.config['trial']}: its Ray worker was lost {WORKER_LOSSES + 1} times", done=1)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.close()

    def _say(self, line: str, *, done: int = 0) -> None:
        write_line(line)
        if self._progress is not None and done:
            self._progress.advance(done)


def _pruned(record: Record, last_result: Mapping[str, Any]) -> Record:
    """Returns the record of a trial that the scheduler ended, or that evaluates the model of one."""
    at = f"after {last_result['samples']:.0f} crops, at a quality of {last_result['quality']:.3f}"
    train_s = record.train_s + last_result["time_total_s"] if record.status == "running" else 0.0
    return record.but(status="pruned", reason=f"behind others {at}", train_s=train_s)


def _name(trial: TuneTrial) -> str:
    return trial.config["trial"]


def _record_lost_worker(plan: Plan, out: Path, name: str, error: Exception) -> Record:
    """Writes the record of a trial if its worker ended without one."""
    planned = plan.planned(name)
    record = read_record(planned, out)
    if record.status in ("waiting", "running"):
        lost = f"its Ray worker was lost {WORKER_LOSSES + 1} times ({type(error).__name__})"
        record = write_record(record.but(status="crashed", session=plan.session, reason=lost), planned, out)
    return record
