"""Plans: every trial is composed before anything starts, and its identity is what decides its result."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from data.shards.manifest import read_manifest
from distributed.experiment import load_experiment
from pupujepa.config import ConfigError
from pupujepa.errors import UserError
from sweeps.plan.compose import part_url, plan_sweep, write_part
from sweeps.plan.plan import Launch, commands_for, read_plan, write_plan
from sweeps.plan.points import expand
from sweeps.plan.sweep_file import read_sweep
from tests.data.shardsets import build_shard_set
from tests.pupujepa.twins import match
from tests.sweeps.conftest import PRESET

ABLATIONS = Path(__file__).parents[3] / "sweeps" / "ablations"


@pytest.fixture
def plan_of(write_sweep, shards, corpus):
    """Plans a sweep with the given fields."""

    def plan(launch_fields=None, session="s", extra=(), **fields):
        sweep = read_sweep(write_sweep(**fields))
        launch = Launch(str(PRESET), str(shards), str(corpus), tuple(sweep.tasks), commands_for(1))
        launch = dataclasses.replace(launch, **(launch_fields or {}))
        return plan_sweep(sweep, launch, corpus=corpus, name="sweep", session=session, extra=extra)

    return plan


def test_an_unknown_axis_key_is_refused_with_the_nearest_name(plan_of):
    """A misspelt key fails before anything starts, and the message names the axis and the value."""
    with pytest.raises(ConfigError, match=r"axis 'a', value '0\.5': .*masks\.ration; did you mean masks\.ratio\?"):
        plan_of(axes={"a": {"key": "masks.ration", "values": [0.5]}})


def test_fields_that_contradict_each_other_are_refused(plan_of):
    """Cross-field checks of the trainer run for every trial: here, a teacher with fewer blocks than targets."""
    with pytest.raises(UserError, match=r"axis 'depth', value '1': objective\.target_layers=2 exceeds"):
        plan_of(axes={"depth": {"key": "model.depth", "values": [1]}})


def test_one_place_for_the_checkpoints_of_all_trials_is_refused(plan_of):
    """Each would find those of another and refuse to go on, or worse, not notice."""
    with pytest.raises(ConfigError, match=r"checkpoint\.url=s3://b/c would mix the checkpoints .* leave it out"):
        plan_of(extra=("checkpoint.url=s3://b/c",), axes={"ratio": {"key": "masks.ratio", "values": [0.6]}})


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


def test_a_value_that_changes_the_evaluation_only_trains_nothing(plan_of):
    """Readouts look at the model of the trial that has the same training; a changed training has a model of its own."""
    values = {"mean": {"evaluate.readout": "mean"}, "both": {"evaluate.readout": "mean", "masks.ratio": 0.6}}
    plan = plan_of(axes={"readout": {"values": values}}, seeds=[0, 1])
    models = {p.trial.name: p.model for p in plan.trials}
    assert models["readout=mean-seed0"] == "base-seed0"
    assert models["readout=mean-seed1"] == "base-seed1"
    assert models["readout=both-seed0"] == models["base-seed0"] == ""
    assert [p.trial.name for p in plan.looks_at("base-seed1")] == ["readout=mean-seed1"]
    base, look = plan.planned("base-seed0").settings, plan.planned("readout=mean-seed0").settings
    assert {k for k in look if base[k] != look[k]} == {"evaluate.readout"}


def test_a_control_is_matched_in_steps_tokens_or_operations(plan_of):
    """Against `match` of the twins, which counts for the two structures alone."""
    values = {equal: {"model.structure": "frames", "equal": equal} for equal in ("steps", "tokens", "flops")}
    plan = plan_of(axes={"control": {"values": values}}, budget={"samples": 800})
    base, *matched = (plan.planned(f"{name}-seed0") for name in ("base", *(f"control={equal}" for equal in values)))
    steps, tokens, flops = matched
    experiment = load_experiment([str(PRESET)])
    factors = match(experiment.model, experiment.masks, experiment.objective)
    assert (steps.steps, steps.samples) == (base.steps, base.samples)
    assert (tokens.steps, tokens.tokens) == (base.steps, base.tokens)
    assert flops.steps == round(base.steps * factors.flops_per_crop)
    assert flops.flops == pytest.approx(base.flops, rel=0.5 / flops.steps)
    assert base.flops / steps.flops == pytest.approx(factors.flops_per_crop)


def test_a_scheduler_probes_all_trials_at_the_same_crops(plan_of):
    """Whatever the batch: the interval in steps follows from the share of the budget in samples."""
    fields = {"budget": {"samples": 160}, "axes": {"batch": {"key": "stream.global_batch", "values": [16]}}}
    plan = plan_of(scheduler={"kind": "asha", "every": 0.2}, **fields)
    assert [p.settings["probe.every_steps"] * p.settings["stream.global_batch"] for p in plan.trials] == [32, 32]
    assert (plan.schedule.every_samples, plan.schedule.total_samples) == (32, 160)
    # probes change no result, so a sweep may take a scheduler on later
    assert [p.digest for p in plan.trials] == [p.digest for p in plan_of(**fields).trials]


def test_the_amount_of_data_is_an_axis(plan_of, shards, tmp_path):
    """A part of the shards is another corpus: fewer of the same shards, under their own manifest, readable as any."""
    axes = {"data": {"values": {"half": {"data.share": 0.5}}}}
    base, half = plan_of({"parts": str(tmp_path)}, axes=axes).trials
    assert half.settings["stream.url"] == str(tmp_path / "0.5")
    assert half.settings["data.share"] == 0.5
    assert half.digest != base.digest
    write_part(str(shards), str(tmp_path), 0.5)
    whole, part = read_manifest(str(shards)), read_manifest(half.settings["stream.url"])
    assert (part.shards, part.samples) == (whole.shards[:2], 16)
    assert part.audio_hours == pytest.approx(whole.audio_hours * part.frames / whole.frames)
    assert all((tmp_path / "0.5" / shard.name).read_bytes() for shard in part.shards)


def test_a_part_of_an_object_store_is_refused():
    """There are no links in one."""
    with pytest.raises(UserError, match=r"data\.share links to shards, and s3://b/train is in an object store"):
        part_url("s3://b/train", "parts", 0.5)


def test_a_plan_that_searches_begins_with_the_base(plan_of):
    """What is found later does not change which search it is; another space does."""
    fields = {"plan": "optuna", "draws": 3, "compare_on": "valid"}
    plan = plan_of(axes={"ratio": {"key": "masks.ratio", "values": [0.6]}}, **fields)
    assert [p.trial.name for p in plan.trials] == ["base-seed0"]
    grown = dataclasses.replace(plan, trials=(*plan.trials, *plan_of(seeds=[1]).trials))
    assert grown.digest == plan.digest
    assert plan_of(axes={"ratio": {"key": "masks.ratio", "values": [0.7]}}, **fields).digest != plan.digest


@pytest.mark.parametrize("name", ["demo", "paper", "quick", "transfer", "transfer_width"])
def test_a_ready_made_sweep_composes(name, corpus, shards):
    """Every key and every value of the files; what is looked at is a trial of the same plan."""
    sweep = read_sweep(ABLATIONS / f"{name}.yaml")
    one_seed = dataclasses.replace(sweep, seeds=sweep.seeds[:1])
    launch = Launch(sweep.base.preset, str(shards), str(corpus), tuple(sweep.tasks), commands_for(1), parts="parts")
    plan = plan_sweep(one_seed, launch, corpus=corpus, name=name, session="s")
    assert len(plan.trials) + len(plan.same_as) == len(expand(one_seed))
    assert {p.trial.name for p in plan.trials} >= {p.model for p in plan.trials} - {""}


def test_the_structure_sweep_makes_the_comparisons(corpus, shards):
    """`flat` equals the base in all counts, `frames` in steps, tokens or operations; all are read out alike."""
    sweep = read_sweep(ABLATIONS / "structure.yaml")
    launch = Launch(sweep.base.preset, str(shards), str(corpus), tuple(sweep.tasks), commands_for(1))
    plan = plan_sweep(dataclasses.replace(sweep, seeds=[0]), launch, corpus=corpus, name="s", session="s")
    base, flat, by_band, steps, tokens, flops, look = plan.trials
    for twin in (flat, by_band):
        assert (twin.samples, twin.tokens, twin.flops) == (base.samples, base.tokens, base.flops)
    assert steps.samples == base.samples == 20_480_000
    assert tokens.tokens == base.tokens
    assert flops.flops == pytest.approx(base.flops, rel=1e-4)
    assert {p.settings["evaluate.readout"] for p in plan.trials[:-1]} == {"mean"}
    assert (look.model, look.settings["evaluate.readout"]) == (base.trial.name, "frames")


def test_a_foreign_plan_names_no_folder_outside_of_its_own(plan_of, tmp_path):
    """The name of a trial becomes its directory: a plan of a stranger cannot lead it elsewhere."""
    write_plan(plan_of(), tmp_path)
    path = tmp_path / "plan.json"
    assert read_plan(tmp_path).trials[0].trial.name == "base-seed0"
    path.write_text(path.read_text().replace('"base-seed0"', '"../../../base-seed0"'))
    with pytest.raises(UserError, match=r"plan\.json names the file 'trials/\.\./\.\./.*', which is not a plain"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, b"null", b"{}", b'{"format_version": 1', b"[" * 100_000], ids=range(6)
)
def test_a_damaged_plan_is_one_sentence(tmp_path, content):
    """A crash of the machine may leave plan.json empty or torn: the file and the remedy are named."""
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"plan\.json is damaged .*restore it, or run the sweep again with another --out"
    ):
        read_plan(tmp_path)
