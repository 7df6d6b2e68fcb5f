"""Trials without Ray: real commands under the leash, and the record that each of them leaves."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distributed.watch.alarms import ALARM_NAME, ALARMS_FOLDER
from sweeps.plan.plan import Commands, Launch, Plan, PlannedTrial, commands_for, fill_plan
from sweeps.plan.points import Trial
from sweeps.trials.record import MetricsTail, read_record, tail
from sweeps.trials.trial import Site, command_lines, run_trial, trial_environment
from tests.processes import is_running


@pytest.fixture
def trial_of(tmp_path, stand_in_commands):
    """A plan of one trial of the stand-in, and how to run it."""

    def make(ratio: float, session: str = "s", digest: str = "0123456789abcdef"):
        trial = Trial("one-seed0", "ratio", str(ratio), 0, (f"masks.ratio={ratio}",))
        commands = Commands(**{phase: tuple(argv) for phase, argv in stand_in_commands.items()})
        launch = Launch("demo", "shards", "corpus", ("collection",), commands, grace_s=1.0)
        return Plan("sweep", "", launch, (PlannedTrial(trial, digest, 5, 40, {}),), {}, session)

    return make


def run(plan: Plan, out: Path):
    reports = []
    record = run_trial(plan, plan.trials[0], site=Site(out, os.environ), report=reports.append)
    return record, reports


def starts(plan: Plan, out: Path) -> list[str]:
    return (out / plan.trials[0].directory / "starts").read_text().splitlines()


def test_a_trial_trains_reports_and_evaluates(trial_of, tmp_path):
    """The newest logged step reaches the scheduler as samples seen, and the tasks' values come last."""
    record, reports = run(trial_of(0.8), tmp_path)
    assert record.status == "finished"
    assert (reports[-2]["step"], reports[-2]["samples"]) == (5, 40)
    assert all(r["samples"] == 8 * r["step"] for r in reports)
    value = pytest.approx(0.58)
    assert reports[-1] == {"step": 5, "samples": 40, "status": "finished", "task/collection": value, "score": value}


def test_a_finished_trial_is_not_run_again(trial_of, tmp_path):
    """Not in another session either; a trial that is another one (its digest) runs beside it."""
    run(trial_of(0.8), tmp_path)
    record, reports = run(trial_of(0.8, session="later"), tmp_path)
    assert (record.status, len(reports)) == ("finished", 1)
    assert len(starts(trial_of(0.8), tmp_path)) == 2
    other = trial_of(0.8, digest="fedcba9876543210")
    run(other, tmp_path)
    assert len(starts(other, tmp_path)) == 2


def test_results_that_went_missing_are_made_again(trial_of, tmp_path):
    """A record alone is no result."""
    plan = trial_of(0.8)
    run(plan, tmp_path)
    results = tmp_path / plan.trials[0].directory / "results.jsonl"
    results.unlink()
    run(plan, tmp_path)
    assert results.exists()


def test_a_crash_is_recorded_with_the_tail_of_its_log(trial_of, tmp_path):
    """It is not tried again in its session, and is in the next; the evaluator is not started on half a run."""
    record, reports = run(trial_of(0.5), tmp_path)
    assert record.status == "crashed"
    assert record.reason.startswith("the trainer exited with code 7; see ")
    assert record.log_tail == ("out of memory on purpose",)
    assert reports[-1]["status"] == "crashed"
    run(trial_of(0.5), tmp_path)
    assert len(starts(trial_of(0.5), tmp_path)) == 1
    (tmp_path / "behave").touch()
    assert run(trial_of(0.5, session="later"), tmp_path)[0].status == "finished"


def test_a_trial_that_diverges_is_ended_and_recorded_for_good(trial_of, tmp_path):
    """Without a loss there is nothing to train; the same seed would diverge again, so no session tries it again."""
    started = time.monotonic()
    record, _ = run(trial_of(0.6), tmp_path)
    assert (record.status, record.reason) == ("diverged", "the loss is None at step 2")
    assert time.monotonic() - started < 300, "the stand-in was left to sleep for 600 s"
    assert run(trial_of(0.6, session="later"), tmp_path)[0].status == "diverged"
    assert len(starts(trial_of(0.6), tmp_path)) == 1


def test_a_trainer_that_gives_up_has_diverged(trial_of, tmp_path):
    """It skips single steps without a finite loss itself; when it ends for them, it leaves a file that says so."""
    plan = trial_of(0.8)
    said = {"step": 7, "what": "loss nan", "in_row": 11, "micro_batches": []}
    path = tmp_path / plan.trials[0].directory / "diverged-step-0000007-rank-0.json"
    write = f"open({str(path)!r}, 'w').write({json.dumps(said)!r})"
    gives_up = Commands(("{python}", "-c", f"{write}; raise SystemExit(2)"), plan.launch.commands.evaluate)
    record, _ = run(replace(plan, launch=replace(plan.launch, commands=gives_up)), tmp_path)
    assert (record.status, record.reason) == ("diverged", "loss nan at step 7, the last of 11 in a row")


@pytest.mark.parametrize(
    ("code", "action", "status", "alarm"),
    [
        (87, "stop", "collapsed", " (rank and joint fall at step 40)"),
        (87, None, "collapsed", ""),  # the run keeps no snapshots
        (1, "stop", "collapsed", " (rank and joint fall at step 40)"),  # torchrun hides its ranks' exit codes
        (1, "snapshot", "crashed", None),
        (1, None, "crashed", None),
    ],
)
def test_a_trainer_that_its_guard_stopped_has_collapsed(trial_of, tmp_path, code, action, status, alarm):
    """It failed, but did not crash: no session tries it again, and the record points to the alarm."""
    plan = trial_of(0.8)
    directory = tmp_path / plan.trials[0].directory
    if action:
        for step in (20, 40):
            said = {"alarms": [{"name": "rank"}, {"name": "joint fall"}], "row": {"step": step}}
            path = directory / ALARMS_FOLDER / f"step-{step:07d}" / ALARM_NAME
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(said | {"guard": {"action": action}}))
    stops = Commands(("{python}", "-c", f"raise SystemExit({code})"), plan.launch.commands.evaluate)
    stopped = replace(plan, launch=replace(plan.launch, commands=stops))
    record, reports = run(stopped, tmp_path)
    assert (record.status, record.failed, reports[-1]["status"]) == (status, True, status)
    assert record.is_over is (status == "collapsed")
    if record.is_over:
        assert record.reason == f"the guard stopped it{alarm}; see the alarm in {directory / 'train.log'}"
    # the stand-in would finish: only a crash is tried again
    again = run(trial_of(0.8, session="later"), tmp_path)[0].status
    assert again == ("collapsed" if status == "collapsed" else "finished")


def test_probes_are_reported_by_samples_and_told_again(trial_of, tmp_path):
    """A scheduler compares them at equal samples; when a sweep goes on, it hears those of finished trials once more."""
    plan = trial_of(0.8)
    probed = replace(plan.trials[0], trial=replace(plan.trials[0].trial, overrides=("probe.every_steps=1",)))
    plan = replace(plan, trials=(probed,))
    (tmp_path / "behave").touch()
    for session in ("s", "later"):
        _, reports = run(replace(plan, session=session), tmp_path)
        found = [(r["samples"], r["quality"]) for r in reports if "quality" in r]
        assert found == [(8, 0.8), (16, 0.8), (24, 0.8), (32, 0.8), (40, 0.8)]
    assert len(starts(plan, tmp_path)) == 2


def test_a_second_look_trains_nothing(trial_of, tmp_path):
    """The evaluator alone runs, on the other trial's model, in a directory and with a record of its own."""
    plan = trial_of(0.8)
    first = plan.trials[0]
    look = Trial("look-seed0", "readout", "mean", 0, (), evaluate=(("readout", "mean"),))
    second = PlannedTrial(look, "fedcba9876543210", 5, 40, {}, model=first.trial.name)
    plan = replace(plan, trials=(first, second))
    record = run_trial(plan, second, site=Site(tmp_path, os.environ), report=[].append)
    assert record.reason == "there is no model to evaluate: one-seed0 is waiting"
    run(plan, tmp_path)
    record = run_trial(replace(plan, session="t"), second, site=Site(tmp_path, os.environ), report=[].append)
    assert (record.status, record.train_s) == ("finished", 0)
    assert (tmp_path / second.directory / "starts").read_text().split()[::2] == ["evaluate"]
    ordinary = replace(plan, launch=replace(plan.launch, commands=commands_for(1)))
    evaluate = command_lines(ordinary, second, out=tmp_path, ports=[1, 2])["evaluate"]
    assert evaluate[evaluate.index("--encoders") + 1] == f"{tmp_path / first.directory}:mean"


def test_a_trainer_that_was_asked_to_stop_goes_on_in_the_next_session(trial_of, tmp_path):
    """The trainer's exit code 85 means saved, not failed; the probes wait until it has finished."""
    plan = trial_of(0.8)
    stops = Commands(("{python}", "-c", "raise SystemExit(85)"), plan.launch.commands.evaluate)
    interrupted = replace(plan, launch=replace(plan.launch, commands=stops))
    record, _ = run(interrupted, tmp_path)
    assert (record.status, record.failed) == ("stopped", False)
    assert run(trial_of(0.8, session="later"), tmp_path)[0].status == "finished"


def test_no_process_outlives_a_trial_whose_report_fails(trial_of, tmp_path):
    """Tune ends a trial by an exception in its report, too: the ranks go, whatever session they are in."""
    plan = trial_of(0.7)
    pids = tmp_path / plan.trials[0].directory / "pids"

    def stop(metrics):
        if pids.exists():
            raise InterruptedError("stopped by the scheduler")

    with pytest.raises(InterruptedError):
        run_trial(plan, plan.trials[0], site=Site(tmp_path, os.environ), report=stop)
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    assert read_record(plan.trials[0], tmp_path).status == "running"  # interrupted: the next session goes on


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"null", b"{}", b'{"status": "fin'], ids=range(5))
def test_a_damaged_record_counts_as_waiting(trial_of, tmp_path, caplog, content):
    """The trial is started again, and continues from its checkpoints; the file is named."""
    planned = trial_of(0.7).trials[0]
    path = tmp_path / planned.directory / "trial.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert read_record(planned, tmp_path).status == "waiting"
    assert f"{path} is damaged" in caplog.text


def test_a_trial_is_a_world_of_its_own(trial_of):
    """Nothing of a launcher around the sweep reaches its ranks; cores are shared among them."""
    outer = {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "3", "TORCHELASTIC_RUN_ID": "x", "AWS_PROFILE": "music"}
    plan = trial_of(0.8)
    environment = trial_environment(plan, plan.trials[0], outer)
    assert not {"RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"} & set(environment)
    assert environment["AWS_PROFILE"] == "music"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["WANDB_RUN_GROUP"] == "sweep"


def test_several_ranks_meet_at_the_port_of_their_trial(trial_of, tmp_path):
    """The ordinary commands of a trial of two ranks: torchrun, with a port for each phase."""
    plan = trial_of(0.8)
    launch = Launch("demo", "s3://b/train", "corpus", ("key", "tempo"), commands_for(2), ranks=2)
    plan = Plan("sweep", "", launch, plan.trials, {}, "s")
    lines = command_lines(plan, plan.trials[0], out=tmp_path, ports=[1111, 2222])
    launcher = "-m torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port 1111 -m distributed"
    assert " ".join(lines["train"]).startswith(f"{sys.executable} {launcher} train --preset demo --run-dir ")
    assert lines["train"][-1] == "masks.ratio=0.8"
    evaluate = lines["evaluate"]
    assert evaluate[evaluate.index("--master-port") + 1] == "2222"
    assert evaluate[evaluate.index("--tasks") + 1 :][:2] == ["key", "tempo"]


def test_templates_fill_words_and_lists():
    """{name} inside a word, a list in place of its word; other braces stay."""
    filled = fill_plan(["{a}/x", "{many}", "{none}", "{}"], {"a": "1"}, {"many": ["p", "q"], "none": []})
    assert filled == ["1/x", "p", "q", "{}"]


def test_metrics_are_followed_line_by_line(tmp_path):
    """Half a line waits for its end; a log that a resumed run has cut is read from its start."""
    path = tmp_path / "metrics.jsonl"
    follow = MetricsTail(path)
    assert follow.new_rows() == []
    path.write_text('{"step": 0}\n{"step"')
    assert follow.new_rows() == [{"step": 0}]
    with path.open("a") as file:
        file.write(": 1}\n")
    assert follow.new_rows() == [{"step": 1}]
    shorter = tmp_path / "new"
    shorter.write_text(json.dumps({"step": 0, "again": True}) + "\n")
    shorter.replace(path)
    assert follow.new_rows() == [{"step": 0, "again": True}]


def test_a_bar_that_overwrites_itself_is_one_line_of_the_tail(tmp_path):
    """The end of a log shows what happened, not 25 states of a progress bar."""
    log = tmp_path / "log"
    log.write_text("first\n" + "".join(f"\r{i} of 100" for i in range(100)) + "\nlast\n")
    assert tail(log) == ("first", "99 of 100", "last")
