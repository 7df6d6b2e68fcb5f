import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed.drawing.tables import ABSENT, to_markdown, to_page
from distributed.marble.datasets.corpus import SPLITS
from distributed.marble.datasets.targets import LabelSpace, Split, TaskData
from distributed.marble.probes.probing import Choice, ProbeJob, ProbeOutcome
from distributed.marble.results.results import (
    Resamples,
    Row,
    Sampling,
    make_rows,
    read_resamples,
    read_results,
    write_results,
)
from distributed.marble.results.tables import result_tables
from distributed.marble.tasks.tasks import TASKS

COLLECTION = next(t for t in TASKS if t.name == "collection")
UNITS = tuple(f"piece{i // 2}" for i in range(80))


Measured = tuple[str, ProbeOutcome]


def outcome(encoder: str, accuracy: float, *, seed: int) -> Measured:
    """An encoder, and a classifier on it with a share of 80 items correct, for two seeds."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, 80)
    statistics = []
    for _ in range(2):
        predicted = np.where(rng.permutation(80) < round(80 * accuracy), target, (target + 1) % 3)
        statistics.append({"predicted": predicted, "target": target})
    both = tuple(statistics)
    choice = Choice(1, 2, 0.7, (0.5, 0.7), (3, 5), 9)
    return encoder, ProbeOutcome(choice, {"accuracy": both, "balanced_accuracy": both}, both[:1], width=8)


def made(*outcomes: Measured, corpus: str = "c1", protocol: str = "clean") -> tuple[list[Row], Resamples]:
    split = Split((), (), np.arange(80), UNITS, 0, 0)
    data = TaskData(COLLECTION, LabelSpace(("a", "b", "c")), dict.fromkeys(SPLITS, split))
    jobs = [
        ProbeJob(
            data=data,
            encoder=encoder,
            features=None,  # type: ignore[arg-type]  # rows are of outcomes, not of features
            layers=(0, 4),
            layer_names=("first", "last"),
            digests={"checkpoint": encoder, "corpus": corpus, "features": "f"},
        )
        for encoder, _ in outcomes
    ]
    sampling = Sampling(resamples=400, seed=0)
    return make_rows(jobs, [o for _, o in outcomes], protocol=protocol, sampling=sampling)


def rows_of(*outcomes: Measured) -> list[Row]:
    return made(*outcomes)[0]


def test_a_row_says_what_was_measured_and_how():
    """A row has value, interval, layer number in the encoder, rate, seeds, selection and extra metrics."""
    [row] = rows_of(outcome("mine", 0.8, seed=0))
    assert row["value"] == pytest.approx(0.8)
    assert row["interval"][0] < 0.8 < row["interval"][1]
    assert (row["task"], row["encoder"], row["protocol"], row["metric"]) == ("collection", "mine", "clean", "accuracy")
    assert (row["layer"], row["seeds"], row["test_items"]) == (4, [0, 1], 80)
    assert row["learning_rate"] == COLLECTION.fit.learning_rates[2]
    selection = dict(row["selection"])
    low, high = selection.pop("interval")
    assert low < 0.8 < high
    assert selection == {"split": "valid", "metric": "accuracy", "value": 0.7, "items": 80}
    assert row["extra"]["head"] == "linear"
    assert row["extra"]["test_units"] == 40
    assert 0.7 < row["extra"]["balanced_accuracy"]["value"] < 0.9
    assert row["difference_to"] == {}


def test_differences_are_paired_over_the_same_pieces():
    """The difference of two encoders with the same errors has a narrower interval than either value."""
    base = outcome("random_init", 0.6, seed=0)
    better = []
    for statistics in base[1].statistics["accuracy"]:
        wrong = np.flatnonzero(statistics["predicted"] != statistics["target"])[:8]
        predicted = statistics["predicted"].copy()
        predicted[wrong] = statistics["target"][wrong]
        better.append({"predicted": predicted, "target": statistics["target"]})
    mine = replace(base[1], statistics=dict.fromkeys(base[1].statistics, tuple(better)))
    row = rows_of(base, ("mine", mine))[1]
    difference = row["difference_to"]["random_init"]
    assert difference["value"] == pytest.approx(0.1)
    low, high = difference["interval"]
    assert 0 < low < 0.1 < high
    assert high - low < row["interval"][1] - row["interval"][0]


def test_results_of_other_protocols_stay_and_old_ones_are_replaced(tmp_path: Path):
    """A second evaluation replaces equal rows and adds another protocol; another corpus drops old rows."""
    write_results(tmp_path, *made(outcome("mine", 0.5, seed=0)))
    write_results(tmp_path, *made(outcome("mine", 0.8, seed=0)))
    rows = write_results(tmp_path, *made(outcome("mine", 0.6, seed=0), protocol="marble"))
    assert [r["protocol"] for r in rows] == ["clean", "marble"]
    assert [r["value"] for r in rows] == pytest.approx([0.8, 0.6])
    assert len(read_resamples(tmp_path)) == 2
    rows = write_results(tmp_path, *made(outcome("mine", 0.7, seed=0), corpus="c2"))
    assert [r["value"] for r in rows] == [pytest.approx(0.7)]
    assert list(read_resamples(tmp_path)) == [rows[0]["bootstrap"]["values"]]
    assert read_results(tmp_path) == rows


def test_evaluations_at_once_lose_no_rows(tmp_path: Path):
    """Three evaluations add three encoders each to one folder at the same time: nine rows, with their resamples."""
    each = [[made(outcome(f"encoder{i}-{n}", 0.5, seed=3 * i + n)) for n in range(3)] for i in range(3)]
    start = threading.Barrier(3)

    def evaluate(mine: list[tuple[list[Row], Resamples]]) -> None:
        start.wait()
        for one in mine:
            write_results(tmp_path, *one)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(evaluate, each))
    rows = read_results(tmp_path)
    assert {r["encoder"] for r in rows} == {f"encoder{i}-{n}" for i in range(3) for n in range(3)}
    assert {r["bootstrap"]["values"] for r in rows} == set(read_resamples(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_resampled_values_lie_beside_the_rows(tmp_path: Path):
    """Stored resamples give the interval of every metric of a row, in the row's order."""
    [row] = write_results(tmp_path, *made(outcome("mine", 0.8, seed=0)))
    values_MR = read_resamples(tmp_path)[row["bootstrap"]["values"]]
    assert row["bootstrap"]["metrics"] == ["accuracy", "balanced_accuracy"]
    assert values_MR.shape == (2, 400)
    for values_R, shown in zip(
        values_MR, (row["interval"], row["extra"]["balanced_accuracy"]["interval"]), strict=True
    ):
        assert list(np.quantile(values_R, [0.025, 0.975])) == pytest.approx(shown)


def test_tables_show_value_interval_and_protocol():
    """Markdown and HTML have the same numbers, the best in bold, dashes for gaps, and escaped names."""
    rows = rows_of(outcome("mine<b>", 0.8, seed=0), outcome("random_init", 0.6, seed=1))
    rows.append(rows[1] | {"task": "key", "metric": "key_weighted"})
    tables = result_tables(rows)
    markdown, page = to_markdown(tables), to_page(tables, title="Scores")
    low, high = rows[0]["interval"]
    assert f"**0.800** [{low:.3f}, {high:.3f}]" in markdown
    assert f"<strong>0.800</strong> <small>[{low:.3f}, {high:.3f}]</small>" in page
    assert "## Protocol clean" in markdown
    assert "- best epoch on validation" in markdown
    assert f"| Key (weighted key score) | {ABSENT.text} |" in markdown
    assert "<b>" not in page
    assert "mine&lt;b&gt;" in markdown


def test_both_protocols_and_what_differs_are_on_the_page(tmp_path: Path):
    """results.html and results.md show both values of a task and describe the differences in words."""
    write_results(tmp_path, *made(outcome("mine", 0.8, seed=0)))
    assert "What differs between" not in (tmp_path / "results.html").read_text()
    write_results(tmp_path, *made(outcome("mine", 0.6, seed=0), protocol="marble"))
    for name in ("results.html", "results.md"):
        text = (tmp_path / name).read_text()
        assert "What differs between the protocols" in text
        assert "collection (marble / clean): weights and monitors: the last epoch" in text.replace("&#39;", "'")
