"""A trial is an ordinary run: the trainer's command, then the evaluator's, in its own run directory.

Nothing here knows Ray. `run_trial` starts each command under a leash (sweeps/trials/leash.py), so that all ranks end
with the process that runs the trial. It reports the rows of metrics.jsonl and leaves a record. A trial that starts
again resumes from the trainer's newest checkpoint. A trial that only evaluates another trial's model does not train.
"""

import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from distributed.processes.stop import EXIT_CODE_REQUEUE
from distributed.watch.alarms import EXIT_CODE_COLLAPSED
from distributed.watch.config import PROBE_MEAN
from sweeps.plan.plan import Plan, PlannedTrial, fill_plan
from sweeps.trials.leash import Leash
from sweeps.trials.record import (
    MetricsTail,
    Record,
    divergence,
    guard_stop,
    is_finished,
    lost_its_loss,
    read_record,
    read_trial_results,
    score_on,
    tail,
    write_record,
)

METRICS = "metrics.jsonl"
ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.25
# torchrun's exit code when a rank fails, whatever the rank's own was
EXIT_CODE_LAUNCHER = 1
# a trial's ranks must not read what a launcher says about the sweep's process
LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "MV2_", "FLUX_", "PALS_", "JSM_")


@dataclass(frozen=True)
class Site:
    """The sweep's directory and the environment of its commands."""

    out: Path
    environ: Mapping[str, str]


def run_trial(plan: Plan, planned: PlannedTrial, *, site: Site, report: Callable[[dict[str, Any]], None]) -> Record:
    """Trains and probes one trial, unless it is finished; writes and returns its record.

    A trial that diverged, collapsed, was pruned, or failed in this session is not tried again. A trial that crashed in
    an earlier session is.

    Args:
        report: receives {"step", "samples", "loss"} while the trial trains, {"samples", "quality"} for each of its
            probes, those of earlier sessions too, and {"status", "score", "task/..."} in the end.
    """
    record = read_record(planned, site.out)
    settled = record.is_over or (record.failed and record.session == plan.session)
    if settled or is_finished(planned, site.out):
        for row in qualities(planned, MetricsTail(site.out / planned.directory / METRICS).new_rows()):
            report(row)
    else:
        record = write_record(_attempt(plan, planned, site, report), planned, site.out)
    metrics = final_metrics(read_trial_results(planned, site.out), split=plan.launch.compare_on)
    report({"step": planned.steps, "samples": planned.samples, "status": record.status, **metrics})
    return record


def final_metrics(results: Sequence[Mapping[str, Any]], *, split: str) -> dict[str, float]:
    """Returns the value of each task on the split, and `score`, their mean, which a search maximises."""
    values = {f"task/{row['task']}": score_on(split, row)["value"] for row in results}
    return values | ({"score": fmean(values.values())} if values else {})


def qualities(planned: PlannedTrial, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns {"step", "samples", "quality"} for each row with probes of the model in training."""
    per_step = planned.samples_per_step
    return [
        {"step": row["step"], "samples": row["step"] * per_step, "quality": row[PROBE_MEAN], "status": "running"}
        for row in rows
        if PROBE_MEAN in row
    ]


def trial_environment(plan: Plan, planned: PlannedTrial, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a trial's commands.

    Threads share the trial's cores, and wandb groups the runs by sweep. Variables of an outer launcher are removed: two
    trials on one node are two worlds.
    """
    inherited = {
        name: value
        for name, value in environ.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }
    threads = max(1, int(plan.launch.cpus / plan.launch.ranks))
    # without this, trials that asked for no GPU would all take the first one
    devices = {} if plan.launch.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return (
        inherited
        | devices
        | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            "WANDB_RUN_GROUP": plan.name,
            "WANDB_NAME": planned.trial.name,
        }
    )


def command_lines(plan: Plan, planned: PlannedTrial, *, out: Path, ports: Sequence[int]) -> dict[str, list[str]]:
    """Returns the argv of trainer and evaluator, each with the port of its ranks."""
    launch, trial = plan.launch, planned.trial
    lists = {
        "presets": [word for preset in (launch.preset, *trial.presets) for word in ("--preset", preset)],
        "overrides": trial.overrides,
        "tasks": launch.tasks,
    }
    model = plan.planned(planned.model) if planned.model else planned
    values = {
        "python": sys.executable,
        "preset": launch.preset,
        "run_dir": str(out / planned.directory),
        "encoder": trial.encoder(str(out / model.directory)),
        "shards": launch.shards,
        "corpus": launch.corpus,
        "ranks": str(launch.ranks),
        "seed": str(trial.seed),
    }
    templates = {"train": launch.commands.train, "evaluate": launch.commands.evaluate}
    return {
        phase: fill_plan(template, values | {"port": str(port)}, lists)
        for (phase, template), port in zip(templates.items(), ports, strict=True)
    }


def _attempt(plan: Plan, planned: PlannedTrial, site: Site, report: Callable[[dict[str, Any]], None]) -> Record:
    """Runs both commands and returns the record."""
    commands = command_lines(plan, planned, out=site.out, ports=[free_port(), free_port()])
    previous = read_record(planned, site.out)
    record = Record(
        planned.digest,
        plan.session,
        "running",
        train_s=previous.train_s,
        evaluate_s=previous.evaluate_s,
        commands=commands,
    )
    write_record(record, planned, site.out)
    started = time.monotonic()
    if planned.model:
        failure = _missing_model(plan.planned(planned.model), site)
    else:
        failure = _train(commands["train"], plan, planned, site, report)
        record = record.but(train_s=record.train_s + time.monotonic() - started)
    if failure is None:
        started = time.monotonic()
        failure = _evaluate(commands["evaluate"], plan, planned, site)
        record = record.but(evaluate_s=record.evaluate_s + time.monotonic() - started)
    return record.but(**(failure or {"status": "finished"}))


def _missing_model(model: PlannedTrial, site: Site) -> dict[str, Any] | None:
    """Returns the failure for the record if the trial of the model is not finished."""
    if is_finished(model, site.out):
        return None
    status = read_record(model, site.out).status
    return {"status": "crashed", "reason": f"there is no model to evaluate: {model.trial.name} is {status}"}


def _train(
    argv: list[str], plan: Plan, planned: PlannedTrial, site: Site, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Runs the trainer; returns None, or the failure for the record."""
    run_dir = site.out / planned.directory
    metrics = MetricsTail(run_dir / METRICS)

    def follow() -> str:
        new_rows = metrics.new_rows()
        rows = [row for row in new_rows if "loss" in row]
        for row in rows:
            if lost_its_loss(row):
                return f"the loss is {row['loss']} at step {row['step']}"
        for quality in qualities(planned, new_rows):
            report(quality)
        if rows:
            step = rows[-1]["step"] + 1  # rows count from 0
            samples = step * planned.samples_per_step
            report({"step": step, "samples": samples, "loss": rows[-1]["loss"], "status": "running"})
        return ""

    code, diverged = _run(argv, plan, planned, site, "train.log", follow)
    log = run_dir / "train.log"
    diverged = diverged or (code != 0 and divergence(run_dir)) or ""
    if diverged:
        return {"status": "diverged", "reason": diverged, "log_tail": tail(log)}
    alarm = guard_stop(run_dir) if code in (EXIT_CODE_COLLAPSED, EXIT_CODE_LAUNCHER) else ""
    if alarm or code == EXIT_CODE_COLLAPSED:
        reason = f"the guard stopped it{alarm and f' ({alarm})'}; see the alarm in {log}"
        return {"status": "collapsed", "reason": reason, "log_tail": tail(log)}
    if code == EXIT_CODE_REQUEUE:
        return {"status": "stopped", "reason": "the trainer was asked to stop, and saved; it resumes from there"}
    return _crash("trainer", code, log)


def _evaluate(argv: list[str], plan: Plan, planned: PlannedTrial, site: Site) -> dict[str, Any] | None:
    """Runs the evaluator; returns None, or the failure for the record."""
    directory = site.out / planned.directory
    code, _ = _run(argv, plan, planned, site, "evaluate.log", lambda: "")
    if code == 0 and not (directory / "results.jsonl").is_file():
        return {"status": "crashed", "reason": "the evaluator exited 0 but left no results.jsonl"}
    return _crash("evaluator", code, directory / "evaluate.log")


def _crash(who: str, code: int, log: Path) -> dict[str, Any] | None:
    if code == 0:
        return None
    how = f"was killed by signal {code - 128}" if code > 128 else f"exited with code {code}"
    return {"status": "crashed", "reason": f"the {who} {how}; see {log}", "log_tail": tail(log)}


def _run(
    argv: list[str], plan: Plan, planned: PlannedTrial, site: Site, log: str, follow: Callable[[], str]
) -> tuple[int, str]:
    """Runs a command under a leash until it ends, or until `follow` gives a reason to end it.

    Returns:
        the exit code and the reason; the reason is "" if the command ended by itself.
    """
    leash = Leash(
        argv,
        env=trial_environment(plan, planned, site.environ),
        cwd=ROOT,
        log=site.out / planned.directory / log,
        grace_s=plan.launch.grace_s,
    )
    try:
        while leash.poll() is None:
            if reason := follow():
                return leash.end(), reason
            time.sleep(POLL_S)
        # rows that were written since the last look
        return leash.end(), follow()
    finally:
        leash.end()


def free_port() -> int:
    """Returns a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
