import argparse
import json
import subprocess
from pathlib import Path

import pytest
import torch

from distributed.marble.evaluate import add_arguments, run
from distributed.marble.evaluation import Evaluation, deal_jobs, evaluate
from distributed.marble.features.features import FeatureSet
from distributed.marble.probes import probing
from distributed.marble.tasks.tasks import select_tasks
from distributed.processes.collectives import all_or_none
from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from tests.distributed.launch import ROOT, environment, torchrun
from tests.distributed.marble.corpora import read_rows

ENCODERS = ("random_init", "log_mel", "chroma")


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(w) for w in words])


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def evaluate_here(data: Path, run_dir: Path, *, out: Path, cache: Path | None = None, quick: bool = False) -> None:
    """All offline tasks on four encoders, in this process."""
    encoders, tasks = (str(run_dir), *ENCODERS), select_tasks(["all"])
    evaluation = Evaluation(encoders, tasks, data=data, out=out, cache=cache or out / "features", quick=quick)
    evaluate(evaluation, Topology(), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def results(corpus_folder: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole evaluation in this process: five tasks, four encoders."""
    out = tmp_path_factory.mktemp("results")
    evaluate_here(corpus_folder, run_folder, out=out)
    return out


def test_every_task_is_measured_on_every_encoder_that_supports_it(results: Path):
    """Four encoders on key, three on the rest; each row has its protocol and an interval around its value."""
    rows = read(results)
    assert len(rows) == 4 + 4 * 3
    assert {r["encoder"] for r in rows if r["task"] == "key"} == {"tiny", *ENCODERS}
    for row in rows:
        assert row["protocol"] == "clean"
        assert row["interval"][0] <= row["value"] + 1e-9
        assert row["value"] <= row["interval"][1] + 1e-9
        assert set(row["digests"]) == {"checkpoint", "corpus", "features"}
        assert ("random_init" in row["difference_to"]) == (row["encoder"] != "random_init")
    assert (results / "results.md").read_text().count("\n| ") == 6
    page = (results / "results.html").read_text()
    assert "<table" in page
    # a layer profile for every task, the best layer of tiny and of random_init marked
    assert page.split("Layers, protocol clean")[1].count("<circle") == 5 * 2


def test_beats_are_heard_in_clicks(results: Path):
    """Frames, widened targets, decoder and matching together find clicks that a spectrogram shows."""
    [row] = [r for r in read(results) if (r["task"], r["encoder"]) == ("beats", "log_mel")]
    assert row["value"] > 0.8
    assert row["extra"]["downbeat_f1"]["value"] >= 0


def test_a_second_evaluation_computes_no_features_and_gives_the_same_rows(
    results: Path, corpus_folder: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Everything is seeded and cached: the rows are the same, without a pass of an encoder.

    That holds to the last bit when no split fits into memory and every batch is read from the store.
    """

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("distributed.marble.encoders.pupujepa.FrozenPupuJEPA.embed", refuse)
    monkeypatch.setattr("distributed.marble.features.reading.CPU_RESIDENT_BYTES", 0)
    evaluate_here(corpus_folder, run_folder, out=tmp_path, cache=results / "features")
    assert (tmp_path / "results.jsonl").read_bytes() == (results / "results.jsonl").read_bytes()


def test_the_test_split_is_read_once_and_for_the_choice_alone(
    corpus_folder: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No test feature is read before layer and rate are chosen; then only the chosen layer's are, once."""
    tested = {row["track"] for row in read_rows(corpus_folder) if row["split"] == "test"}
    read_features, choose, events = FeatureSet.read, probing.choose, []

    def told_read(self, slices, kind, *, layers=None):
        if tested & {s.uid for s in slices}:
            events.append(layers)
        return read_features(self, slices, kind, layers=layers)

    def told_choose(*args):
        events.append(choose(*args))
        return events[-1]

    monkeypatch.setattr(FeatureSet, "read", told_read)
    monkeypatch.setattr(probing, "choose", told_choose)
    tasks = select_tasks(["collection"])
    evaluation = Evaluation((str(run_folder),), tasks, data=corpus_folder, out=tmp_path, cache=tmp_path / "features")
    evaluate(evaluation, Topology(), device=torch.device("cpu"))
    choice, layers = events
    assert layers == range(choice.layer, choice.layer + 1)


def test_ranks_give_the_rows_of_one_process(results: Path, corpus_folder: Path, run_folder: Path, tmp_path: Path):
    """torchrun with 3 ranks, which do not divide slices or banks, writes the same results, byte for byte.

    So do the quick checks of two ranks and of three.
    """
    encoders = (str(run_folder), *ENCODERS)
    command = [*torchrun(3), "-m", "tests.distributed.marble.evaluations", str(tmp_path), str(corpus_folder), *encoders]
    own = environment() | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained" / "results.jsonl").read_bytes() == (results / "results.jsonl").read_bytes()
    assert done.stdout.count("| task |") == 1
    evaluate_here(corpus_folder, run_folder, out=tmp_path, quick=True)
    for ranks in (2, 3):
        assert (tmp_path / f"quick-{ranks}" / "quick.jsonl").read_bytes() == (tmp_path / "quick.jsonl").read_bytes()


def test_the_upstream_protocol_is_marked_and_keeps_the_last_epoch(corpus_folder: Path, tmp_path: Path):
    """--protocol both runs every kind of task twice; rows of protocol marble keep the last epoch.

    What differs is written below the tables.
    """
    args = arguments("--encoders", "log_mel", "--data", corpus_folder, "--out", tmp_path, "--protocol", "both")
    assert run(args) == 0
    rows = [r for r in read(tmp_path) if r["protocol"] == "marble"]
    assert len(read(tmp_path)) == 2 * len(rows)
    assert {r["task"] for r in rows} == {"key", "beats", "instruments", "tempo", "collection"}
    for row in rows:
        assert max(row["extra"]["kept_epochs"]) <= row["extra"]["epochs"]
    assert any(row["extra"]["kept_epochs"] == [row["extra"]["epochs"]] * len(row["seeds"]) for row in rows)
    assert "What differs between the protocols" in (tmp_path / "results.md").read_text()


def test_jobs_are_dealt_evenly():
    """The longest banks go first, each to the rank with the least work; every bank is assigned once."""
    jobs = [argparse.Namespace(cost=c) for c in (1.0, 9.0, 3.0, 5.0, 2.0)]
    assert deal_jobs(jobs, 2) == [[1, 0], [3, 2, 4]]
    assert sorted(number for hand in deal_jobs(jobs, 7) for number in hand) == [0, 1, 2, 3, 4]


def test_where_one_rank_fails_the_others_stop(monkeypatch: pytest.MonkeyPatch):
    """If one rank fails, others stop with a UserError; the failing rank keeps its own error."""
    monkeypatch.setattr("distributed.processes.collectives.gather", lambda failed, topology: [failed, True])
    with (
        pytest.raises(UserError, match="features: rank 1 failed, so this rank stops too"),
        all_or_none(Topology(0, 2, 0), "features"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), all_or_none(Topology(1, 2, 1), "features"):
        raise ZeroDivisionError


def test_a_folder_without_a_corpus_is_one_clear_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tracks.jsonl in .*python -m data scores"):
        run(arguments("--encoders", "log_mel", "--data", tmp_path / "nowhere", "--out", tmp_path))


def test_nothing_to_measure_is_refused(corpus_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="none of these encoders supports any of these tasks"):
        run(arguments("--encoders", "chroma", "--tasks", "beats", "--data", corpus_folder, "--out", tmp_path))
