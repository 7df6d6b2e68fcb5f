import argparse
import json
from pathlib import Path

import pytest

from distributed.marble.evaluate import add_arguments, run
from distributed.marble.quick import DRAWS, QUICK, SHOTS, neighbour_counts, quick_table
from pupujepa.errors import UserError
from pupujepa.json_lines import read_rows
from tests.distributed.marble.corpora import Recipe, make_corpus


def evaluate(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in words]))


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two takes of each of 24 pieces, so that LiDAR applies."""
    return make_corpus(tmp_path_factory.mktemp("takes") / "tones", Recipe(pieces=24, takes=2))


@pytest.fixture(scope="module")
def out(takes: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks, three encoders."""
    folder = tmp_path_factory.mktemp("quick")
    encoders = (str(run_folder), f"{run_folder}:mean", "chroma")
    assert evaluate("--quick", "--encoders", *encoders, "--data", takes, "--out", folder, "--resamples", 200) == 0
    return folder


def test_each_kind_of_task_gets_the_checks_that_apply(out: Path):
    """Classes get all checks, tags kNN and spectra, regression spectra, frames none; nothing is trained."""
    rows = read_rows(out / QUICK)
    checks = {
        t: sorted({(r["check"], r.get("shots", 0)) for r in rows if r["task"] == t}) for t in {r["task"] for r in rows}
    }
    few = [("few-shot", n) for n in SHOTS]
    assert checks["key"] == checks["collection"] == sorted([*few, ("knn", 0), ("spectrum", 0)])
    assert checks["instruments"] == [("knn", 0), ("spectrum", 0)]
    assert checks["tempo"] == [("spectrum", 0)]
    assert "beats" not in checks
    assert not (out / "results.jsonl").exists()
    assert {r["encoder"] for r in rows if r["task"] == "key"} == {"tiny", "tiny:mean", "chroma"}
    assert {r["encoder"] for r in rows if r["task"] == "instruments"} == {"tiny", "tiny:mean"}


def test_rows_say_what_was_chosen_and_on_what(out: Path):
    """Each row has an interval around its value, the best layer on validation, and a possible k."""
    for row in read_rows(out / QUICK):
        if row["check"] == "spectrum":
            continue
        assert row["interval"][0] - 1e-9 <= row["value"] <= row["interval"][1] + 1e-9
        assert row["layer"] == row["layer_profile"].index(max(row["layer_profile"]))
        assert row["validation"] == max(row["layer_profile"])
        assert (row["train_items"], row["test_items"]) == (30, 12)
        if row["check"] == "knn":
            assert row["k"] in neighbour_counts(30)
        else:
            assert row["draws"] == DRAWS and row["classes_with_fewer"] <= row["classes"]


def test_chroma_finds_the_keys_of_triads_without_training(takes: Path, out: Path):
    """Nearest neighbours in twelve pitch classes do better than the 24 classes' chance, by far."""
    [row] = [r for r in read_rows(out / QUICK) if (r["task"], r["encoder"], r["check"]) == ("key", "chroma", "knn")]
    assert row["value"] > 0.2


def test_spectra_are_of_every_layer(out: Path):
    """Ranks between 1 and the number of slices; LiDAR of pieces with two takes; regions of the same features."""
    rows = [r for r in read_rows(out / QUICK) if r["check"] == "spectrum" and r["encoder"] == "tiny"]
    for row in rows:
        assert row["layer_names"] == ["patch embedding", "block 1", "last block, normed"]
        assert len(row["rank"]) == len(row["lidar"]) == 3
        assert all(1 <= rank <= 30 for rank in row["rank"])
        assert row["lidar_groups"] == {"kind": "pieces", "count_and_size": [15, 2]}
        assert (row["slices"], row["width"]) == (30, 128)


def test_rows_stay_until_they_are_measured_anew(out: Path, takes: Path):
    """Another encoder adds rows, the same one replaces its own; the table has a line for each."""
    before = read_rows(out / QUICK)
    evaluate("--quick", "--encoders", "log_mel", "--tasks", "collection", "--data", takes, "--out", out)
    evaluate("--quick", "--encoders", "chroma", "--tasks", "key", "--data", takes, "--out", out, "--resamples", 200)
    after = read_rows(out / QUICK)
    assert len(after) == len(before) + 2 + len(SHOTS)
    assert all(row in after for row in before)
    table = (out / "quick.md").read_text()
    assert table == quick_table(after)
    assert table.count("\n| ") == 1 + len({(r["task"], r["encoder"]) for r in after})
    json.dumps(after, allow_nan=False)


def test_frame_tasks_alone_are_refused(takes: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--quick compares whole clips, but all of these tasks label frames"):
        evaluate("--quick", "--encoders", "log_mel", "--tasks", "beats", "--data", takes, "--out", tmp_path)
