"""A training on a mix of two corpora: shares in the metrics, one normalisation, and resumed to the same losses."""

import json

import pytest

from distributed.experiment import Experiment, check, experiment_differences, load_experiment
from pupujepa.config import ConfigError, from_yaml, to_yaml
from pupujepa.errors import UserError
from tests.data.shardsets import LO, build_shard_set
from tests.distributed.launch import deterministic_rows, losses

MIX = ["stream.mix.large.url=shards/large", "stream.mix.large.weight=3", "stream.mix.small.url=s3://bucket/small"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_jobs):
    """One run straight through, one that is stopped at step 11 and goes on; on codes of two ranges and two dtypes."""
    root = tmp_path_factory.mktemp("mixed")
    build_shard_set(str(root / "large"), (16, 16, 16), num_frames=lambda number: 64 + number % 9, moments=(-4.0, 2.0))
    build_shard_set(str(root / "small"), (8, 8), dtype="float16", lo=LO - 2.0, moments=(-6.0, 3.0))
    mix = [f"stream.mix.{name}.url={root / name}" for name in ("large", "small")]
    overrides = [*mix, "stream.mix.large.weight=3", "stream.mix.small.weight=1"]
    straight = {"run_dir": str(root / "straight"), "overrides": overrides}
    stopped = {"run_dir": str(root / "stopped"), "overrides": overrides}
    run_jobs(root, (1, [straight, {**stopped, "stop_at": 11}, stopped]))
    return root


def test_metrics_show_what_was_drawn_of_each_corpus(runs):
    """Shares after every step, and how often each corpus was gone through: 120 of 48 and 40 of 16 crops."""
    rows = [json.loads(line) for line in (runs / "straight" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert rows[-1]["mix/large/share"] == 0.75 and rows[-1]["mix/small/share"] == 0.25
    assert (rows[-1]["mix/large/epochs"], rows[-1]["mix/small/epochs"]) == (120 / 48, 40 / 16)
    assert all(abs(row["mix/small/share"] * 8 * (row["step"] + 1) - 2 * (row["step"] + 1)) <= 0.5 for row in rows)
    assert losses(runs / "straight")[-1] < losses(runs / "straight")[0]


def test_the_weights_belong_to_the_normalisation_of_the_mix(runs):
    """config.yaml, and with it the export, has the mean and deviation of three parts and one."""
    experiment = from_yaml(Experiment, (runs / "straight" / "config.yaml").read_text())
    assert experiment.model.mel_mean == pytest.approx(0.75 * -4 + 0.25 * -6)
    assert experiment.model.mel_std**2 == pytest.approx(0.75 * 20 + 0.25 * 45 - experiment.model.mel_mean**2)
    facts = json.loads((runs / "straight" / "facts.json").read_text())
    assert facts["mix"] == "3 large + 1 small"
    assert (facts["tracks"], facts["shards"], facts["samples"]) == (64, 5, 64)
    assert facts["store"] == f"{runs / 'large'}, {runs / 'small'}"


def test_a_stopped_run_goes_on_to_the_same_losses(runs):
    """Stopped and resumed, the log of the mix is that of the straight run, bit for bit."""
    assert deterministic_rows(runs / "stopped") == deterministic_rows(runs / "straight")


def test_a_mix_is_named_on_the_command_line_and_kept():
    """Dotted keys name corpora; YAML keeps them; a copy elsewhere is the same run, another weight is not."""
    experiment = load_experiment(["demo"], overrides=MIX)
    check(experiment, world_size=1)
    assert experiment.stream.mix["small"].weight == 1.0
    assert from_yaml(Experiment, to_yaml(experiment)) == experiment
    moved = load_experiment(["demo"], overrides=[*MIX, "stream.mix.large.url=elsewhere"])
    assert experiment_differences(experiment, moved) == []
    heavier = load_experiment(["demo"], overrides=[*MIX, "stream.mix.large.weight=4"])
    assert experiment_differences(experiment, heavier) == ["stream.mix.large.weight: 3.0 -> 4.0"]
    fewer = load_experiment(["demo"], overrides=[o for o in MIX if "small" not in o])
    assert experiment_differences(experiment, fewer) == ["stream.mix.small.weight: 1.0 -> None"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ([*MIX, "stream.url=shards/train"], r"stream.url=shards/train and stream.mix \(large, small\) are both set"),
        ([*MIX, "stream.mix.small.url=s3://key:secret@bucket/x"], "stream.mix.small.url carries credentials"),
        ([*MIX, "stream.mix.small.weight=-1"], "stream.mix.small.weight=-1.0 is no share"),
        (["stream.mix.small.weight=2"], "stream.mix.small.url is not set"),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused_before_anything_starts(overrides, match):
    """With the key and the remedy."""
    with pytest.raises(UserError, match=match):
        check(load_experiment(["demo"], overrides=overrides), world_size=1)


def test_a_misspelt_key_of_a_corpus_is_refused():
    """With the nearest name."""
    with pytest.raises(ConfigError, match=r"unknown key stream\.mix\.small\.wight; did you mean .*\.weight\?"):
        load_experiment(["demo"], overrides=[*MIX, "stream.mix.small.wight=2"])
