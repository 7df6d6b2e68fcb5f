"""When a run is probed, and on which tracks; that it works, and touches nothing, is in test_watched_runs.py."""

import logging

import pytest

from distributed.build import warn_of_missing_data
from distributed.experiment import Experiment, load_experiment
from distributed.marble.datasets.corpus import read_labelled_corpus
from distributed.watch.config import ProbeConfig
from distributed.watch.probes import probing_corpus
from pupujepa.config import from_yaml, to_yaml
from pupujepa.errors import UserError
from tests.distributed.marble.corpora import Recipe, make_corpus


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({}, 0),
        ({"data": "corpus"}, 0),
        ({"every_fraction": 0.05}, 0),
        ({"every_fraction": 0.05, "data": "corpus"}, 100),
        ({"every_fraction": 0.0001, "data": "corpus"}, 1),
        ({"every_fraction": 0.05, "every_steps": 7, "data": "corpus"}, 7),
    ],
)
def test_its_schedule_is_its_own(settings, every):
    """Steps win over a fraction of the run; without data there is none."""
    assert ProbeConfig(**settings).interval(2000) == every


@pytest.mark.parametrize("recipe", ["paper", "robust"])
def test_large_runs_are_probed_and_the_demo_is_not(recipe):
    """As soon as there is something to probe on."""
    assert load_experiment([recipe], overrides=["probe.data=corpus"]).probe.interval(500_000) == 25_000
    assert load_experiment(["demo"], overrides=["probe.data=corpus"]).probe.interval(1500) == 0


def test_an_old_configuration_is_not_probed():
    """A run that was begun before there were probes goes on without."""
    text = to_yaml(load_experiment(["demo"]))
    old = "\n".join(line for line in text.splitlines() if "every_fraction" not in line)
    assert from_yaml(Experiment, old).probe == ProbeConfig()


def test_probes_without_data_are_refused():
    """Steps are asked for by hand, so the run would not be what was asked for."""
    with pytest.raises(UserError, match="make a labelled corpus with `python -m data scores"):
        ProbeConfig(every_steps=10)


def test_a_preset_without_data_says_so(caplog):
    """A preset's fraction is no reason to refuse a run; that there will be no curve is said."""
    with caplog.at_level(logging.WARNING):
        warn_of_missing_data(ProbeConfig(every_fraction=0.05))
        warn_of_missing_data(ProbeConfig())
    assert len(caplog.records) == 1
    assert "probe.data is not set" in caplog.text


def test_the_test_split_is_never_seen(tmp_path):
    """Training pieces train; the pieces that validate are divided, without sharing one; the test split stays out."""
    corpus = read_labelled_corpus(make_corpus(tmp_path / "corpus", Recipe(pieces=48, takes=2, duration_s=0.1)))
    subset = probing_corpus(corpus, tracks=20)
    of_split = {split: subset.of_split(split) for split in ("train", "valid", "test")}
    assert len(of_split["train"]) == 20
    assert len(of_split["valid"]) + len(of_split["test"]) == 10
    by_uid = {track.uid: track.split for track in corpus.tracks}
    assert {by_uid[track.uid] for track in of_split["train"]} == {"train"}
    assert {by_uid[track.uid] for track in (*of_split["valid"], *of_split["test"])} == {"valid"}
    choosing, scoring = ({track.group for track in of_split[split]} for split in ("valid", "test"))
    assert choosing and scoring and not choosing & scoring
    assert probing_corpus(corpus, tracks=20) == subset
    assert subset.digest != corpus.digest
