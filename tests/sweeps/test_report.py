"""The report of a sweep from its files: every trial is in it, and the page needs nothing but itself."""

import json
import re
from dataclasses import replace

import pytest

from docs.browser import Browser, View
from sweeps.plan.plan import Commands, Launch, Plan, PlannedTrial, read_plan, write_plan
from sweeps.plan.points import Trial
from sweeps.report import write_report
from sweeps.trials.record import Record, write_record

TASK = "collection"
# what a reader sees; the label of a whisker's axis is hidden from screen readers
READ = """({
  overflow: document.documentElement.scrollWidth - innerWidth,
  unnamed: [...document.querySelectorAll("svg:not([aria-hidden])")].filter((s) => !s.getAttribute("aria-label")).length,
  drawn: Object.fromEntries(["forest-cell", "chart", "pareto", "parallel"].map((name) => [name,
    [...document.querySelectorAll(`svg.${name}:not([aria-hidden])`)].filter((s) => s.getBoundingClientRect().width > 90)
    .length])),
  rows: [...document.querySelectorAll("#table tbody th")].map((th) => th.innerText),
  lines: [...document.querySelectorAll("svg.parallel path title")].map((t) => t.textContent),
})"""


def planned(axis: str, value: str, seed: int, ratio: float) -> PlannedTrial:
    trial = Trial(f"{axis}{value}-seed{seed}", axis, value, seed, ())
    settings = {"masks.ratio": ratio, "train.seed": seed, "stream.url": f"x{seed}"}
    return PlannedTrial(trial, f"{axis}{value}{seed}".ljust(16, "0"), 5, 40, settings, flops=2 * 10**13)


def finish(trial: PlannedTrial, out, value: float) -> None:
    write_record(Record(trial.digest, status="finished", train_s=60.0, evaluate_s=5.0), trial, out)
    rows = [row_of(TASK, "accuracy", value), row_of("key", "key_weighted", value / 2)]
    (out / trial.directory / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    probes = [{"step": step, "probe/mean": value * step / 5} for step in (0, 2, 5)]
    (out / trial.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes))


def row_of(task: str, metric: str, value: float) -> dict:
    row = {"task": task, "metric": metric, "value": value, "interval": [value - 0.1, value + 0.1], "test_items": 9}
    own = {"metric": metric, "value": value - 0.3, "interval": [value - 0.4, value - 0.2], "items": 7}
    return row | {"selection": {"split": "valid", **own}}


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    with Browser() as running:
        yield running


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
        "0.375 (+0.125 [\N{MINUS SIGN}0.016, 0.266])",
        "masks.ratio: 0.8 \N{RIGHTWARDS ARROW} 0.6",
        "40",
        "20.0",
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


def test_the_latex_table_is_one_for_a_paper(sweep):
    """As many columns as the head has in every row; nothing that TeX would read as its own."""
    out = sweep([0, 1])
    write_report(out)
    tex = (out / "sweep.tex").read_text()
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {6}
    assert r"\begin{tabular}{lrrlrrr}" in tex
    assert r"masks.ratio: 0.8 $\to$ 0.6" in tex
    assert "ratio = $<$b$>$" in tex
    body = [line for line in tex.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[%#_~^]", "\n".join(body))


def test_a_second_look_costs_its_probes_alone(sweep):
    """Its model was trained once, for another row."""
    out = sweep([0])
    plan = read_plan(out)
    base = plan.trials[0]
    look = replace(planned("readout", "mean", 0, 0.8), model=base.trial.name)
    finish(look, out, 0.6)
    write_record(Record(look.digest, status="finished", evaluate_s=5.0), look, out)
    write_plan(replace(plan, trials=(*plan.trials, look)), out)
    row = next(line for line in write_report(out).splitlines() if line.startswith("| readout = mean "))
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["\N{EN DASH}", "\N{EN DASH}", "5.0 s"]


def test_the_page_in_a_browser(sweep, browser):
    """On a desktop and on a phone: every plot is drawn and named, nothing sticks out, nothing is requested."""
    out = sweep([0, 1, 2])
    write_report(out)
    url = (out / "sweep.html").as_uri()
    for view in (View(), View(width=375, height=800, dark=True)):
        visit = browser.visit(url, READ, view=view)
        assert visit.errors == []
        assert [u for u in visit.requests if not u.startswith("data:")] == [url]
        assert visit.result["overflow"] <= 0
        assert visit.result["unnamed"] == 0
        assert visit.result["drawn"] == {"forest-cell": 2, "chart": 1, "pareto": 1, "parallel": 1}
        assert visit.result["rows"] == ["base", "ratio = 0.6", "ratio = <b>"]
        assert visit.result["lines"] == ["ratio = 0.6: 0.640", "base: 0.450"]


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
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|@import|url\((?!#)", page)
    assert page.count('<svg class="forest-cell"') == 4  # a scale and a row for each task
