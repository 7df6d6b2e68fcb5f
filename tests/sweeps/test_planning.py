"""Plans: every trial is composed before anything starts, and its identity is what decides its result."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from pupujepa.config import ConfigError
from pupujepa.errors import UserError
from sweeps.axes import read_sweep
from sweeps.plan import Launch, commands_for, read_plan, write_plan
from sweeps.planning import make_plan
from tests.data.shardsets import build_shard_set
from tests.sweeps.conftest import PRESET


@pytest.fixture
def plan_of(write_sweep, shards, corpus):
    """Plans a sweep with the given fields."""

    def plan(launch_fields=None, session="s", extra=(), **fields):
        sweep = read_sweep(write_sweep(**fields))
        launch = Launch(str(PRESET), str(shards), str(corpus), tuple(sweep.tasks), commands_for(1))
        launch = dataclasses.replace(launch, **(launch_fields or {}))
        return make_plan(sweep, launch, corpus=corpus, name="sweep", session=session, extra=extra)

    return plan


def test_an_unknown_axis_key_is_refused_with_the_nearest_name(plan_of):
    """A misspelt key fails before anything starts, and the message names the axis and the value."""
    with pytest.raises(ConfigError, match=r"axis 'a', value '0\.5': .*masks\.ration; did you mean masks\.ratio\?"):
        plan_of(axes={"a": {"key": "masks.ration", "values": [0.5]}})


def test_fields_that_contradict_each_other_are_refused(plan_of):
    """Cross-field checks of the trainer run for every trial: here, a teacher with fewer blocks than targets."""
    with pytest.raises(UserError, match=r"axis 'depth', value '1': objective\.target_layers=2 exceeds"):
        plan_of(axes={"depth": {"key": "model.depth", "values": [1]}})


def test_a_value_that_the_base_has_is_not_trained_again(plan_of):
    """The axis value 0.8 is the preset's own: the plan says so instead of running the base twice."""
    plan = plan_of(axes={"ratio": {"key": "masks.ratio", "values": [0.6, 0.8]}})
    assert [p.trial.name for p in plan.trials] == ["base-seed0", "ratio=0.6-seed0"]
    assert plan.same_as == {"ratio=0.8-seed0": "base-seed0"}


def test_a_budget_in_samples_compares_at_equal_crops(plan_of):
    """When an axis doubles the batch, the steps halve."""
    plan = plan_of(budget={"samples": 160}, axes={"batch": {"key": "stream.global_batch", "values": [16]}})
    assert [(p.steps, p.samples) for p in plan.trials] == [(20, 160), (10, 160)]
    assert "train.steps=10" in plan.trials[1].trial.overrides


def test_an_axis_over_the_steps_goes_before_the_budget(plan_of):
    """Training length is an axis like any other."""
    plan = plan_of(axes={"length": {"key": "train.steps", "values": [9]}})
    assert [p.steps for p in plan.trials] == [5, 9]


def test_identity_is_what_decides_the_result(plan_of, tmp_path):
    """Session, cache and log settings keep a trial's directory; seeds, ranks, tasks and commands change it."""
    digest = plan_of().trials[0].digest
    same = [plan_of(session="t"), plan_of(extra=[f"stream.cache_dir={tmp_path}", "telemetry.log_every=3"])]
    assert {p.trials[0].digest for p in same} == {digest}
    others = [
        plan_of(seeds=[1]),
        plan_of(tasks=["tempo"]),
        plan_of(probe_tracks=9),
        plan_of({"ranks": 2}),
        plan_of({"commands": commands_for(2)}),
        plan_of(budget={"steps": 6}),
    ]
    assert len({digest, *(p.trials[0].digest for p in others)}) == 1 + len(others)


def test_shards_are_an_axis_like_any_other(plan_of, tmp_path, shards):
    """Another shard set is another trial; the same shards under another path are not trained twice."""
    build_shard_set(str(tmp_path / "others"), (8, 8, 8, 8), dtype="float16", num_frames=lambda number: 64 + number % 9)
    shutil.copytree(shards, tmp_path / "copy")
    values = {name: {"stream.url": str(tmp_path / name)} for name in ("others", "copy")}
    plan = plan_of(axes={"codes": {"values": values}})
    assert [p.trial.name for p in plan.trials] == ["base-seed0", "codes=others-seed0"]
    assert plan.same_as == {"codes=copy-seed0": "base-seed0"}
    assert plan.trials[0].digest == plan_of().trials[0].digest


def test_a_plan_reads_back_as_it_was_written(plan_of, tmp_path):
    """plan.json holds all that the trials' processes need."""
    plan = plan_of(axes={"ratio": {"key": "masks.ratio", "values": [0.6]}})
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan


def test_a_directory_without_a_sweep_is_named(tmp_path):
    """Reporting on the wrong directory is one sentence."""
    with pytest.raises(UserError, match=r"holds no sweep \(no plan\.json\)"):
        read_plan(Path(tmp_path))


def test_the_demo_sweep_composes(shards, corpus):
    """The sweep file that comes with the checkout names keys that exist."""
    demo = read_sweep(Path(__file__).parents[2] / "sweeps" / "ablations" / "demo.yaml")
    launch = Launch(demo.base.preset, str(shards), str(corpus), tuple(demo.tasks), commands_for(1))
    plan = make_plan(demo, launch, corpus=corpus, name="demo", session="s")
    assert len(plan.trials) == 2
