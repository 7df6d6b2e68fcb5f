"""The report of a sweep from its files: every trial is in it, and the page needs nothing but itself."""

import json
import re

import pytest

from sweeps.axes import Trial
from sweeps.plan import Commands, Launch, Plan, PlannedTrial, write_plan
from sweeps.record import Record, write_record
from sweeps.report import write_report

TASK = "collection"


def planned(axis: str, value: str, seed: int, ratio: float) -> PlannedTrial:
    trial = Trial(f"{axis}{value}-seed{seed}", axis, value, seed, ())
    settings = {"masks.ratio": ratio, "train.seed": seed, "stream.url": f"x{seed}"}
    return PlannedTrial(trial, f"{axis}{value}{seed}".ljust(16, "0"), 5, 40, settings)


def finish(trial: PlannedTrial, out, value: float) -> None:
    write_record(Record(trial.digest, status="finished", train_s=60.0, evaluate_s=5.0), trial, out)
    row = {"task": TASK, "metric": "accuracy", "value": value, "interval": [value - 0.1, value + 0.1], "test_items": 9}
    own = {"metric": "accuracy", "value": value - 0.3, "interval": [value - 0.4, value - 0.2], "items": 7}
    row["selection"] = {"split": "valid", **own}
    (out / trial.directory / "results.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture
def sweep(tmp_path):
    """Writes a sweep of a base, a better value and one that crashed, over the given seeds."""

    def make(seeds, compare_on="test"):
        launch = Launch("demo", "s3://b/train", "corpus", (TASK,), Commands((), ()), compare_on=compare_on)
        trials = []
        for seed in seeds:
            base, better = planned("base", "", seed, 0.8), planned("ratio", "0.6", seed, 0.6)
            broken = planned("ratio", "<b>", seed, 0.9)
            finish(base, tmp_path, 0.5 + 0.1 * seed)
            finish(better, tmp_path, 0.75 + 0.1 * seed + 0.01 * (seed % 2))
            crash = Record(
                broken.digest, status="crashed", reason="exited with code 7", log_tail=("& <out of memory>",)
            )
            write_record(crash, broken, tmp_path)
            trials += [base, better, broken]
        same_as = {"ratio=0.8-seed0": trials[0].trial.name}
        write_plan(Plan("study", "Is less more?", launch, tuple(trials), same_as), tmp_path)
        return tmp_path

    return make


def test_one_seed_says_that_it_has_no_interval_over_seeds(sweep):
    """The table holds values, deltas with the interval over test items, what differs, crops and minutes."""
    markdown = write_report(sweep([0]))
    assert "There is one seed (0), so there is no interval over seeds" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| ratio = 0.6 "))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == [
        "0.750 (+0.250 [0.109, 0.391])",
        "masks.ratio: 0.8 \N{RIGHTWARDS ARROW} 0.6",
        "40",
        "1 min 05 s",
    ]
    assert "ratio = 0.6 raises collection by 0.250" in markdown
    assert "also stands for ratio=0.8" in markdown


def test_a_search_is_compared_on_validation_and_says_so(sweep):
    """The table shows the validation scores, and not one number of the test split."""
    markdown = write_report(sweep([0], compare_on="valid"))
    assert "0.450 (+0.250 [0.109, 0.391])" in markdown
    assert "0.750" not in markdown
    assert "Scores are those of the validation split" in markdown


def test_several_seeds_are_paired(sweep):
    """The level of a seed cancels; the interval says that it covers seeds."""
    out = sweep([0, 1, 2, 3])
    markdown = write_report(out)
    assert "paired by seed over 4 seeds" in markdown
    assert "raises collection by 0.255 (95 % interval of the difference [0.246, 0.264], over seeds)" in markdown


def test_failed_trials_are_in_all_three_files(sweep):
    """A crash is a row with its reason and the end of its log, escaped where it must be."""
    out = sweep([0])
    markdown = write_report(out)
    assert "**ratio<b>-seed0 crashed**: exited with code 7" in markdown
    assert "& <out of memory>" in markdown
    rows = [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["finished", "finished", "crashed"]
    page = (out / "sweep.html").read_text()
    assert "&amp; &lt;out of memory&gt;" in page
    assert "ratio&lt;b&gt;-seed0 crashed." in page


def test_the_page_needs_no_network(sweep):
    """No address, script or import in it; drawings are inline."""
    out = sweep([0])
    write_report(out)
    page = (out / "sweep.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|@import|url\(", page)
    assert page.count('<svg class="forest"') == 1
