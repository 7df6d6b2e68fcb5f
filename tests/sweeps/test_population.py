"""Populations: what they decide survives whatever stops them, and each run's history is its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.experiment import load_experiment
from pupujepa.errors import UserError
from sweeps.axes import read_sweep
from sweeps.lineage import LINEAGE_NAME, read_lineage, schedule_of
from sweeps.plan import PLAN_NAME, SWEEP_NAME, Launch, commands_for, read_plan, write_plan
from sweeps.planning import make_plan
from sweeps.population import PopulationSearch
from sweeps.record import read_record, write_record
from sweeps.report import write_report
from sweeps.run import with_found
from sweeps.trial import command_lines
from tests.sweeps.conftest import PRESET

ROOT, MEMBER = Path(__file__).parents[2], Path(__file__).with_name("member.py")
RATES = {"rate": {"key": "schedule.peak_lr", "values": [0.002, 0.004, 0.008]}}
SCHEDULER = {"kind": "pbt", "every": 0.33}
TWO_PARTS = {"budget": {"samples": 32}, "scheduler": SCHEDULER | {"every": 0.5}}
# neither of the two draws comes down to the bound, to which a member may be changed
BELOW_FINAL = {"axes": {"a": {"key": "schedule.peak_lr", "low": 1e-7, "high": 1e-2}}, "plan": "random", "draws": 2}
FIELDS = {"axes": RATES, "plan": "grid", "budget": {"samples": 48}, "scheduler": SCHEDULER}


@pytest.fixture
def population(write_sweep, shards, corpus, tmp_path):
    """Writes the plan of three members and six steps, as `sweeps run` does, and returns its directory."""

    def make(**fields) -> Path:
        out = tmp_path / "out"
        path = write_sweep(**FIELDS | fields)
        launch = Launch(str(PRESET), str(shards), str(corpus), ("collection",), commands_for(1))
        plan = make_plan(read_sweep(path), launch, corpus=corpus, name="sweep", session="s")
        out.mkdir(exist_ok=True)
        (out / SWEEP_NAME).write_text(path.read_text())
        write_plan(with_found(plan, out), out)
        return out

    return make


def play(out: Path, config: dict, diverges: str = "") -> None:
    """Does what a trial does to the files, in no time: quality grows by ten times the rate at each step."""
    plan = read_plan(out)
    planned = plan.planned(config["trial"])
    folder = out / planned.directory
    folder.mkdir(parents=True, exist_ok=True)
    begins, parent, rate = (planned.settings[key] for key in ("branch.step", "branch.parent", "schedule.peak_lr"))
    until = config["until"] or planned.steps
    quality = json.loads((Path(parent) / "saved").read_text())[str(begins)] if begins else 0.0
    # a run that is wrongly trained twice would show it
    assert read_record(planned, out).paused_step < until
    saved = {step: quality + 10 * rate * (step - begins) for step in range(begins, until + 1)}
    (folder / "saved").write_text(json.dumps(saved))
    every = planned.settings["probe.every_steps"]
    rows = [{"step": step, "probe/mean": value} for step, value in saved.items() if step % every == 0]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = read_record(planned, out).but(session="s", status="paused", paused_step=until)
    if config["until"] is None:
        record = record.but(status="finished", paused_step=0)
        (folder / "results.jsonl").write_text("")
    if diverges == config["trial"]:
        record = record.but(status="diverged", paused_step=0)
    write_record(record, planned, out)


def drive(out: Path, *, parts: int | None = None, diverges: str = "") -> list[tuple[str, int | None]]:
    """Runs a population two at a time, as Tune would; after `parts` parts everything is lost but the files."""
    search, running, done = PopulationSearch(out), {}, []
    for number in range(100):
        if len(done) == parts:
            return done
        config = search.suggest(str(number))
        if isinstance(config, dict):
            running[str(number)] = config
        if len(running) == 2 or (running and not isinstance(config, dict)):
            name, first = next(iter(running.items()))
            play(out, first, diverges)
            done.append((first["trial"], first["until"]))
            del running[name]
            search.on_trial_complete(name)
        elif config == PopulationSearch.FINISHED:
            return done
    raise AssertionError("it does not end")


def test_the_worst_goes_on_as_a_copy_of_the_best(population):
    """At equal steps; the base, a member too, still trains to its end when it is replaced: all refer to it."""
    out = population()
    done = drive(out)
    assert done == [
        ("base-seed0", 2), ("rate=0.004-seed0", 2), ("rate=0.008-seed0", 2),
        ("member1.1-seed0", 4), ("rate=0.004-seed0", 4), ("rate=0.008-seed0", 4), ("base-seed0", None),
        ("member1.1-seed0", None), ("member2.2-seed0", None), ("rate=0.008-seed0", None),
    ]  # fmt: skip
    plan = read_plan(out)
    rows = read_lineage(out, plan.digest)
    assert [(r["samples"], r["trial"], r["copied_from"], r["becomes"]) for r in rows if r["copied_from"]] == [
        (16, "base-seed0", "rate=0.008-seed0", "member1.1-seed0"),
        (32, "rate=0.004-seed0", "rate=0.008-seed0", "member2.2-seed0"),
    ]
    assert [row["quality"] for row in rows] == pytest.approx([0.04, 0.08, 0.16, 0.24, 0.16, 0.32])
    assert {p.trial.name: read_record(p, out).status for p in plan.trials} == {
        "base-seed0": "finished", "rate=0.004-seed0": "pruned", "rate=0.008-seed0": "finished",
        "member1.1-seed0": "finished", "member2.2-seed0": "finished",
    }  # fmt: skip
    assert [(s.trial, dict(s.values), s.first, s.end) for s in schedule_of("member2.2-seed0", rows, end=48)] == [
        ("rate=0.008-seed0", {"rate": "0.008"}, 0, 32),
        ("member2.2-seed0", {"rate": "0.004"}, 32, 48),
    ]


def test_the_same_lineage_wherever_it_was_stopped(population):
    """After each number of parts everything is lost but the files; the same decisions, and no part is trained twice."""
    out = population()
    shutil.copy(out / PLAN_NAME, out / "first-plan.json")
    straight = drive(out)
    lineage, trials = (out / LINEAGE_NAME).read_text(), read_plan(out).trials
    first = (out / "first-plan.json").read_text()
    for parts in range(1, len(straight)):
        shutil.rmtree(out / "trials")
        (out / LINEAGE_NAME).unlink()
        (out / PLAN_NAME).write_text(first)
        done = drive(out, parts=parts)
        assert sorted([*done, *drive(out)], key=str) == sorted(straight, key=str)
        assert (out / LINEAGE_NAME).read_text() == lineage
        assert read_plan(out).trials == trials
    assert PopulationSearch(out).left == 0


def test_a_kill_between_the_decision_and_what_follows_from_it(population):
    """The decision is written first: without the plan's new trial and the records, the same follows from it."""
    out = population()
    drive(out, parts=3)
    lineage, grown = (out / LINEAGE_NAME).read_text(), read_plan(out)
    assert [planned.trial.name for planned in grown.trials][-1] == "member1.1-seed0"
    (out / PLAN_NAME).unlink()
    population()
    assert len(read_plan(out).trials) == len(grown.trials) - 1
    assert [member.trial for member in PopulationSearch(out).members] == [
        "member1.1-seed0", "rate=0.004-seed0", "rate=0.008-seed0",
    ]  # fmt: skip
    assert read_plan(out).trials == grown.trials
    assert (out / LINEAGE_NAME).read_text() == lineage


def test_who_diverges_is_replaced_and_on_record(population):
    """Its quality is none, not the lowest; when it is the best of rates, the others go on."""
    out = population()
    drive(out, diverges="rate=0.008-seed0")
    plan = read_plan(out)
    row = read_lineage(out, plan.digest)[2]
    assert (row["trial"], row["quality"], row["copied_from"]) == ("rate=0.008-seed0", None, "rate=0.004-seed0")
    assert read_record(plan.planned("rate=0.008-seed0"), out).status == "diverged"
    assert "after its own had diverged" in write_report(out)


def test_a_crash_makes_the_population_wait(population, capsys, caplog):
    """Without its quality nothing is decided, and the members that are left are not trained on; the next start is."""
    out = population()
    search = PopulationSearch(out)
    configs = [search.suggest(str(number)) for number in range(3)]
    for number, config in enumerate(configs):
        if config["trial"] != "rate=0.004-seed0":
            play(out, config)
        search.on_trial_complete(str(number))
    assert search.suggest("next") == PopulationSearch.FINISHED
    assert "['rate=0.004-seed0'] did not come to step 2, so the population waits" in caplog.text
    assert not read_lineage(out, read_plan(out).digest)
    assert drive(out)[0] == ("rate=0.004-seed0", 2)


def test_another_population_in_the_directory_has_its_own_lineage(population):
    """Rows say which sweep they are of, and those of others stay."""
    out = population()
    drive(out, parts=3)
    first = (out / LINEAGE_NAME).read_text()
    population(scheduler=SCHEDULER | {"quantile": 0.5})
    assert not read_lineage(out, read_plan(out).digest)
    drive(out)
    assert (out / LINEAGE_NAME).read_text().startswith(first)


def test_another_population_in_the_directory_has_its_own_runs(population):
    """Those of the first ended where it compared them, and were probed there: nobody could be compared elsewhere."""
    out = population()
    drive(out)
    first = read_plan(out)
    population(scheduler=SCHEDULER | {"every": 0.17})
    drive(out)
    second = read_plan(out)
    assert not {planned.directory for planned in first.trials} & {planned.directory for planned in second.trials}
    rows = read_lineage(out, second.digest)
    assert len(rows) == 15
    assert all(row["quality"] is not None for row in rows)


def test_a_copy_is_an_ordinary_run_that_says_where_it_begins(population):
    """Its command is the trainer's, with the checkpoint of the other run, which that one keeps so long."""
    out = population(base={"preset": str(PRESET), "overrides": {"checkpoint.keep": 1, "checkpoint.every": 1}})
    drive(out, parts=3)
    plan = read_plan(out)
    copy, source = plan.planned("member1.1-seed0"), plan.planned("rate=0.008-seed0")
    argv = command_lines(plan, copy, out=out, ports=[1, 2], until=4)["train"]
    assert argv[argv.index("--until") + 1] == "4"
    experiment = load_experiment([str(PRESET)], overrides=copy.trial.overrides)
    assert (experiment.branch.parent, experiment.branch.step) == (str(out / source.directory), 2)
    assert (experiment.schedule.peak_lr, experiment.train.steps) == (0.004, 6)
    assert experiment.checkpoint.keep == 5  # those of a part, the one before it and one that is being written
    assert (copy.trial.axis, copy.trial.value) == ("rate", "0.004 (member 1 from 16 crops)")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": {"a": {"key": "model.width", "values": [16, 32]}}}, "axis 'a' varies model.width, but a member of a"),
        ({"axes": {"a": {"key": "stream.global_batch", "values": [4, 8]}}}, "the order of samples of the one that it"),
        ({"axes": {"a": {"values": {"x": {"preset": "mae"}, "y": {"preset": "paper"}}}}}, "varies preset"),
        ({"axes": {"a": {"key": "evaluate.readout", "values": ["mean", "frames"]}}}, "varies evaluate.readout"),
        ({"axes": {"a": {"key": "ema.start", "values": [0.9]}}}, "a population of one has nobody to copy"),
        (BELOW_FINAL, "axis 'a', value '1e-07': final_lr=1e-06 must lie between 0 and peak_lr=1e-07"),
        ({"plan": "one_at_a_time"}, "every member of a population has a value on every axis"),
        ({"seeds": [0, 1]}, "a population has one seed"),
        ({"scheduler": SCHEDULER | {"quantile": 0.6}}, "quantile=0.6 is a share of the population"),
        ({"scheduler": SCHEDULER | {"factors": [0.0]}}, r"factors=\[0.0\] are positive"),
        ({"budget": {"steps": 6}}, "the budget must be in samples"),
    ],
)
def test_what_cannot_be_a_population_is_refused(population, fields, message):
    """Before anything starts, with the axis and what else to do."""
    with pytest.raises(UserError, match=message):
        population(**fields)


def test_a_population_on_real_ray(write_sweep, shards, corpus, tmp_path):
    """Three members in two parts; one that loses its loss; what is learnt goes over to the copies; a report."""
    own = {phase: ["{python}", str(MEMBER), phase, "{run_dir}", "{overrides}"] for phase in ("train", "evaluate")}
    axes = {"rate": RATES["rate"] | {"values": [0.2, 0.004, 0.008]}}
    path, out = write_sweep(**FIELDS | {"axes": axes, "commands": own} | TWO_PARTS), tmp_path / "out"
    command = [sys.executable, "-m", "sweeps", "run", str(path), "--shards", str(shards), "--corpus", str(corpus)]
    command += ["--out", str(out), "--cpus", "2", "--grace", "1"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 1, done.stdout + done.stderr  # one diverged
    plan = read_plan(out)
    rows = read_lineage(out, plan.digest)
    assert [(r["trial"], r["quality"], r["becomes"]) for r in rows if r["generation"] == 1] == [
        ("rate=0.2-seed0", None, "member1.1-seed0"),
        ("rate=0.004-seed0", pytest.approx(0.08), "rate=0.004-seed0"),
        ("rate=0.008-seed0", pytest.approx(0.16), "rate=0.008-seed0"),
    ]
    starts = {p.trial.name: (out / p.directory / "starts").read_text().split() for p in plan.trials}
    assert starts["base-seed0"] == ["train", "evaluate"]
    assert starts["rate=0.008-seed0"] == ["train", "train", "evaluate"]
    copy = plan.planned("member1.1-seed0")
    metrics = [json.loads(line) for line in (out / copy.directory / "metrics.jsonl").read_text().splitlines()]
    assert next((row["step"], row["probe/mean"]) for row in metrics if "loss" not in row) == (2, pytest.approx(0.16))
    report = write_report(out)
    assert "copied from rate=0.008-seed0 at 16 crops (0.160, after its own had diverged)" in report
    assert "Best of 3 by its probes at the end" in report
    assert "copied from rate=0.008-seed0" in (out / "sweep.html").read_text()
