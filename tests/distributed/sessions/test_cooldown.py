"""Branches: the first step is the parent's next but for the learning rate, and the parent stays as it is."""

import json
import shutil
from hashlib import sha256

import pytest

from distributed.__main__ import COMMANDS
from distributed.experiment import Experiment, load_experiment
from distributed.run.directory import RunDirectory, RunDirectoryError
from distributed.sessions.cooldown import branch_experiment
from pupujepa.config import from_yaml, to_yaml
from pupujepa.front_door import enter
from tests.distributed.launch import PRESET, deterministic_rows

WSD = ("schedule.kind=wsd", "schedule.cooldown_fraction=0.25")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, run_jobs):
    """A parent of 20 steps; a branch off its 14th, one that was stopped and continued; the parent's files before."""
    folder = tmp_path_factory.mktemp("branches")
    parent, branch, halted = (folder / name for name in ("parent", "branch", "halted"))
    branched = {"cooldown_from": f"{parent}:14", "overrides": ["train.steps=18"]}
    run_jobs(folder, (2, [{"run_dir": str(parent), "url": shards, "overrides": WSD}]))
    before = contents(parent)
    jobs = [{"run_dir": str(branch), **branched}, {"run_dir": str(halted), **branched, "stop_at": 15}]
    # the newest whole is its own, of step 16; the parent's is not asked for again
    jobs += [{"run_dir": str(halted), "cooldown_from": str(parent)}]
    run_jobs(folder, (2, jobs))
    return parent, branch, halted, before


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(run, step):
    return [row for row in deterministic_rows(run) if row["step"] == step and "loss" in row]


def test_the_first_step_is_the_parents_next_but_for_the_learning_rate(runs):
    """Loss, gradient, momentum, masks and samples of step 14 are equal to the last bit; later steps are not."""
    parent, branch, *_ = runs
    (of_parent,), (of_branch,) = rows(parent, 14), rows(branch, 14)
    assert of_branch.pop("lr") < of_parent.pop("lr")
    # the teacher follows the weights after the update, which the rate has made
    assert of_branch.pop("teacher/moved") != of_parent.pop("teacher/moved")
    assert of_branch == of_parent
    assert rows(branch, 16)[0]["loss"] != rows(parent, 16)[0]["loss"]


def test_the_rate_falls_to_the_end_of_the_branch(runs):
    """From the parent's rate at that step, linearly, to final_lr at the last step."""
    _, branch, *_ = runs
    rates = [rows(branch, step)[0]["lr"] for step in range(14, 18)]
    assert rates == pytest.approx([1e-6 + (2e-3 - 1e-6) * part for part in (0.75, 0.5, 0.25, 0)])
    assert not rows(branch, 18)


def test_the_parent_is_untouched(runs):
    """No file of it is written, added or removed, nor its time changed."""
    parent, _, _, before = runs
    assert contents(parent) == before


def test_the_parent_is_on_record(runs):
    """config.yaml says where the branch begins, the history from which bytes; it is a finished run with weights."""
    parent, branch, *_ = runs
    held = from_yaml(Experiment, (branch / "config.yaml").read_text()).branch
    assert (held.parent, held.step, held.horizon_steps) == (str(parent), 14, 20)
    (session,) = json.loads((branch / "history.json").read_text())
    manifest = (parent / "checkpoints" / "step-0000014" / "manifest.json").read_bytes()
    assert session["branched_from"]["digest"] == sha256(manifest).hexdigest()
    assert json.loads((branch / "facts.json").read_text())["resumed"] == []
    assert (branch / "export" / "model.safetensors").is_file()


def test_a_branch_continues_like_any_run(runs):
    """Stopped after its second step and called again, without the step: the losses of the one that went through."""
    _, branch, halted, _ = runs
    for step in range(14, 18):
        assert rows(halted, step) == rows(branch, step)
    assert [session["step"] for session in json.loads((halted / "history.json").read_text())] == [14, 16]


@pytest.fixture
def parent(tmp_path):
    """Enough of a run to compose a branch from: its settings, checkpoints by name."""
    run = RunDirectory(tmp_path / "parent")
    for step in (2, 20, 80):
        (run.checkpoints / f"step-{step:07d}").mkdir(parents=True)
    (run.checkpoints / "LATEST").write_text("step-0000080\n")
    recipe = ["stream.url=/shards", "train.steps=100", "schedule.kind=wsd", "schedule.cooldown_fraction=0.2"]
    run.config.write_text(to_yaml(load_experiment([str(PRESET)], overrides=recipe)))
    return run


def test_the_newest_checkpoint_and_the_parents_fraction_are_the_defaults(parent, tmp_path):
    """80 steps and a cooldown of a fifth of the whole make 100; only the learning rate refers to the new end."""
    experiment = branch_experiment(str(parent.root), RunDirectory(tmp_path / "new"))
    assert (experiment.branch.step, experiment.train.steps, experiment.horizon_steps) == (80, 100, 100)
    shorter = branch_experiment(f"{parent.root}:20", RunDirectory(tmp_path / "new"), overrides=["train.steps=30"])
    assert (shorter.branch.step, shorter.train.steps, shorter.horizon_steps) == (20, 30, 100)
    assert shorter.branch.rate == 2e-3


def test_a_branch_of_a_branch_keeps_the_first_horizon(parent, tmp_path):
    """It begins at the rate that the first branch had come down to."""
    child = RunDirectory(tmp_path / "child")
    (child.checkpoints / "step-0000025").mkdir(parents=True)
    child.config.write_text(to_yaml(branch_experiment(f"{parent.root}:20", child, overrides=["train.steps=30"])))
    grandchild = branch_experiment(f"{child.root}:25", RunDirectory(tmp_path / "new"), overrides=["train.steps=95"])
    assert grandchild.horizon_steps == 100
    assert grandchild.branch.rate == pytest.approx(1e-6 + (2e-3 - 1e-6) * 0.4)


def test_the_same_command_again_means_the_same_branch(parent, tmp_path):
    """The parent may have gone on, or be gone; another parent or step is refused."""
    new = RunDirectory(tmp_path / "new")
    new.root.mkdir()
    experiment = branch_experiment(str(parent.root), new, overrides=["train.steps=90"])
    new.config.write_text(to_yaml(experiment))
    shutil.rmtree(parent.root)
    assert branch_experiment(str(parent.root), new, overrides=["train.steps=90"]) == experiment
    for spec in (f"{parent.root}:20", str(tmp_path / "other")):
        with pytest.raises(RunDirectoryError, match=r"cooldown of .* after 80 steps, and continuing would mix"):
            branch_experiment(spec, new)
    new.config.write_text(to_yaml(load_experiment([str(PRESET)])))
    with pytest.raises(RunDirectoryError, match="holds a run that is no branch"):
        branch_experiment(str(parent.root), new)


@pytest.mark.parametrize(
    ("step", "overrides", "message"),
    [
        ("30", [], r"no checkpoint of step 30; there are: step-0000002, step-0000020, step-0000080"),
        ("80", ["train.steps=80"], "is where the branch ends, but it begins after 80 steps"),
        ("80", ["masks.ratio=0.5"], "another experiment: masks.ratio: 0.8 -> 0.5"),
        ("80", ["schedule.peak_lr=1.0"], "another experiment: schedule.peak_lr"),
        ("2", ["train.steps=9"], "still warming up after 2 steps"),
        ("80", ["checkpoint.url=s3://b/x"], r"checkpoint\.url=s3://b/x: a branch begins with a copy"),
    ],
)
def test_what_is_no_cooldown_is_refused(parent, tmp_path, step, overrides, message):
    """Before anything is written."""
    with pytest.raises(RunDirectoryError, match=message):
        branch_experiment(f"{parent.root}:{step}", RunDirectory(tmp_path / "new"), overrides=overrides)
    assert not (tmp_path / "new").exists()


def test_a_rate_that_would_rise_is_refused(parent, tmp_path):
    """At the end of the parent's own cooldown there is nothing left to fall."""
    (parent.checkpoints / "step-0000099").mkdir()
    overrides = ["train.steps=120", "schedule.final_lr=0.001"]
    with pytest.raises(RunDirectoryError, match="so the rate would rise"):
        branch_experiment(f"{parent.root}:99", RunDirectory(tmp_path / "new"), overrides=overrides)


def test_the_command_wants_a_directory_and_no_other_settings(capsys, tmp_path):
    """A branch is a new run, and all that it is comes from its parent."""
    for words in (["--preset", "demo", "--run-dir", str(tmp_path)], []):
        assert enter("distributed", COMMANDS, manual="", argv=["train", "--cooldown-from", "runs/a", *words]) == 2
        assert "give --run-dir, and neither --preset nor --config" in capsys.readouterr().err
    assert enter("distributed", COMMANDS, manual="", argv=["train", "--cooldown-from", "no/run", "--run-dir", "x"]) == 2
    assert "no/run is not a run" in capsys.readouterr().err
