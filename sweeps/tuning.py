"""The sweep on Ray Tune: one Tune trial per planned trial, Tune's state in OUT/tune, progress in the driver.

Tune's configuration of a trial is its name and the sweep's directory; all else is read from the plan, so that what a
trial does can be read from files and repeated without Ray. Imported by the driver and by the trials' processes only.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from tqdm import tqdm

from sweeps.plan import Plan, read_plan
from sweeps.record import Record, read_record, write_record
from sweeps.trial import Site, run_trial

# a trial whose Ray worker is lost (killed, node gone) is started again so often; a trial whose command fails is not
WORKER_LOSSES = 3

logger = logging.getLogger(__name__)


def tune_trial(config: dict[str, Any]) -> None:
    """The function trainable: runs one planned trial in a Ray worker."""
    out = Path(config["out"])
    plan = read_plan(out)
    run_trial(plan, plan.planned(config["trial"]), site=Site(out, dict(os.environ)), report=tune.report)


def fit(plan: Plan, out: Path) -> None:
    """Runs every trial of the plan that is not finished, beside each other as far as the cores and GPUs hold.

    Where Tune left its state for the same set of trials, the sweep goes on from there.
    """
    # all ranks of a trial share one bundle, so that they are on one node
    bundle = {"CPU": plan.launch.cpus, "GPU": plan.launch.gpus}
    trainable = tune.with_resources(tune_trial, tune.PlacementGroupFactory([bundle]))
    results = _tuner(plan, out, trainable).fit()
    for result in (results[i] for i in range(len(results))):
        if result.error is not None and result.config:
            _record_lost_worker(plan, out, result.config["trial"], result.error)


def _tuner(plan: Plan, out: Path, trainable: Any) -> tune.Tuner:
    path = out / "tune" / plan.digest
    # to Tune a trial whose command failed or stopped is over, so a sweep that starts such trials again needs a new
    # state; what is finished ends at once in it
    over = any(read_record(planned, out).status in ("crashed", "diverged", "stopped") for planned in plan.trials)
    # can_restore is content with the tuner alone, but a restored one without the trials' state has no trials
    has_state = any(path.glob("experiment_state-*.json"))
    if tune.Tuner.can_restore(path) and has_state and not over:
        return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([p.trial.name for p in plan.trials]), "out": str(out)},
        tune_config=tune.TuneConfig(trial_name_creator=_name, trial_dirname_creator=_name, reuse_actors=True),
        run_config=tune.RunConfig(
            name=plan.digest,
            storage_path=str(path.parent),
            failure_config=tune.FailureConfig(max_failures=WORKER_LOSSES),
            callbacks=[Progress(out)],
            verbose=0,
        ),
    )


class Progress(tune.Callback):
    """One line per trial that ends, and a bar over all trials on a terminal.

    Tune pickles its callbacks with its state, so the bar is made when the experiment starts, not when this is.
    """

    def __init__(self, out: Path):
        self._out = out
        self._bar: tqdm | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_out": self._out, "_bar": None}

    def setup(
        self,
        stop: tune.Stopper | None = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: Any,
    ) -> None:
        """Starts the bar."""
        self._plan = read_plan(self._out)
        finished = sum(read_record(p, self._out).status == "finished" for p in self._plan.trials)
        self._bar = tqdm(total=len(self._plan.trials), initial=finished, desc="trials", unit="trial", disable=None)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Says that a trial starts."""
        self._say(f"{trial.config['trial']}: started")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Shows the newest step of a running trial on the bar."""
        if self._bar is not None and "loss" in result:
            self._bar.set_postfix_str(f"{trial.config['trial']} step {result['step']} loss {result['loss']:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Says how long a trial took and what came out, or why it failed, with the end of its log."""
        planned = self._plan.planned(trial.config["trial"])
        record = read_record(planned, self._out)
        metrics = {k.removeprefix("task/"): v for k, v in trial.last_result.items() if k.startswith("task/")}
        found = ", ".join(f"{task} {value:.3f}" for task, value in metrics.items())
        seconds = record.train_s + record.evaluate_s
        self._say(f"{planned.trial.name}: {record.status} after {seconds:.0f} s: {record.reason or found}", done=1)
        for line in record.log_tail:
            self._say(f"    | {line}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Says that a trial was lost for good."""
        self._say(f"{trial.config['trial']}: its Ray worker was lost {WORKER_LOSSES + 1} times", done=1)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str, *, done: int = 0) -> None:
        tqdm.write(line, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done)


def _name(trial: TuneTrial) -> str:
    return trial.config["trial"]


def _record_lost_worker(plan: Plan, out: Path, name: str, error: Exception) -> Record:
    """Gives a trial whose worker ended without writing a record the record of that."""
    planned = plan.planned(name)
    record = read_record(planned, out)
    if record.status in ("waiting", "running"):
        lost = f"its Ray worker was lost {WORKER_LOSSES + 1} times ({type(error).__name__})"
        record = write_record(record.but(status="crashed", session=plan.session, reason=lost), planned, out)
    return record
