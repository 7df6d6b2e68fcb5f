"""From MARBLE's manifests and real audio files to probe scores, for every task and both protocols."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed.marble.evaluation import Evaluation, evaluate
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS
from distributed.marble.tasks.tasks import Task
from distributed.processes.topology import Topology
from tests.distributed.marble.marble_data import make_checkout

ITEMS = {"GTZANBeatTracking": 6, "Chords1217": 4}


def short(task: Task, protocol: str) -> Task:
    """The row under a protocol, with shorter training and, for frames, a smaller head."""
    row = task.under(protocol)
    quick = {"max_epochs": 12, "batch_size": 4, "accumulate": 2, "hidden": 64} if row.frames else {"max_epochs": 3}
    return replace(row, fit=replace(row.fit, learning_rates=(1e-3,), **quick))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One evaluation per protocol, all twelve tasks, on spectrogram statistics."""
    root = tmp_path_factory.mktemp("marble")
    make_checkout(root)
    for protocol in ("marble", "clean"):
        evaluation = Evaluation(
            encoders=("log_mel",),
            tasks=tuple(short(t, protocol) for t in MARBLE_TASKS),
            data=root,
            out=root / "out",
            cache=root / "features",
            protocol=protocol,
        )
        evaluate(evaluation, Topology(), device=torch.device("cpu"))
    return root


def rows_of(folder: Path, protocol: str) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    return {r["task"]: r for r in rows if r["protocol"] == protocol}


@pytest.mark.parametrize("protocol", ["marble", "clean"])
def test_every_task_goes_from_its_manifest_to_a_score(folder: Path, protocol: str):
    """There are twelve rows, each with the metrics and number of test items of its protocol."""
    rows = rows_of(folder, protocol)
    assert list(rows) == [t.name for t in MARBLE_TASKS]
    for task in MARBLE_TASKS:
        row, expected = rows[task.name], task.under(protocol)
        assert row["metric"] == expected.metric
        assert set(expected.extra_metrics) <= set(row["extra"])
        assert row["test_items"] == ITEMS.get(task.name, 2)
        assert row["extra"]["head"] == ("mlp64" if task.frames else "mlp512")
        assert row["interval"][0] - 1e-9 <= row["value"] <= row["interval"][1] + 1e-9


def test_chords_are_heard_and_padding_counts_only_upstream(folder: Path):
    """A track is 20 s of chords and 2 s of silence: its second slice is 5 s of chord, 2 s of N and 8 s of padding.

    Upstream calls the N and the padding by the chord before them, so a probe that hears silence is wrong on a third.
    """
    upstream, clean = rows_of(folder, "marble")["Chords1217"], rows_of(folder, "clean")["Chords1217"]
    assert clean["value"] > 0.6
    assert upstream["value"] < clean["value"] - 0.1


def test_upstreams_empty_classes_count_as_zero(folder: Path):
    """The two test files have 3 of the 50 tags of MTT, so even a perfect ranking is 3/50 upstream."""
    assert rows_of(folder, "marble")["MTT"]["value"] <= 3 / 50 + 1e-9


def test_beats_are_heard(folder: Path):
    """Clicks at the labelled times are found; a wrong slice or label would lower the score."""
    for protocol, metric in (("marble", "beat_f1"), ("clean", "beat_f1_tracks")):
        row = rows_of(folder, protocol)["GTZANBeatTracking"]
        assert (row["metric"], row["test_items"], row["extra"]["test_units"]) == (metric, 6, 2)
        assert row["value"] > 0.6


def test_one_feature_pass_serves_the_four_jamendo_tasks_and_both_protocols(folder: Path):
    """Their rows have the same features for every list and protocol; other channels need another pass."""
    of_task = {
        name: {p: rows_of(folder, p)[name]["digests"]["features"] for p in ("marble", "clean")}
        for name in (t.name for t in MARBLE_TASKS)
    }
    jamendo = {key for name, keys in of_task.items() if name.startswith("MTG") for key in keys.values()}
    assert len(jamendo) == 1
    assert of_task["HookTheoryKey"]["marble"] != of_task["HookTheoryKey"]["clean"]
    assert of_task["HookTheoryKey"]["clean"] == of_task["HookTheoryStructure"]["clean"]
