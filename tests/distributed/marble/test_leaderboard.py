"""Leaderboard of made-up results: its comparisons, its refusals, and its look in a browser."""

import argparse
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from distributed.marble.leaderboard import add_arguments, run
from distributed.marble.metrics.statistics import central_interval, resample_weights
from distributed.marble.results.results import Resamples, Row, read_results, write_results
from distributed.marble.tasks.marble_tasks import ALL_TASKS, MARBLE_TASKS
from distributed.marble.tasks.tasks import Task
from docs.browser import Browser, View
from pupujepa.errors import UserError

ITEMS = {"EMO": 125, "GS": 604, "GTZANGenre": 100, "MTGGenre": 11479, "MTGInstrument": 5115, "MTGMood": 4231}
UNITS = tuple(f"piece{i // 2}" for i in range(60))
SHARES = {"base": 0.7, "large": 0.8, "random_init": 0.5}
# see test_page.py of the report, whose rules for legible text are these
LEGIBLE = """(() => {
  const luminance = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } };
  const unreadable = [...document.querySelectorAll("h1, h2, p, li, th, td, small, strong")].filter((e) => {
    const text = luminance(getComputedStyle(e).color), under = luminance(ground(e));
    return (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05) < 4.5; }).length;
  const board = document.querySelector(".board"), scroll = board.parentElement;
  scroll.scrollLeft = 300;
  const first = board.querySelector("tbody th[scope=row]").getBoundingClientRect();
  return { unreadable, overflow: document.documentElement.scrollWidth - innerWidth,
    scrolls: scroll.scrollWidth > scroll.clientWidth, first: first.left - scroll.getBoundingClientRect().left };
})()"""


def hits(encoder: str, task: str) -> np.ndarray:
    """Mask of 60 items that an encoder gets right; better encoders also get those of worse ones right."""
    draws = np.random.default_rng(len(task)).random(60)
    return (draws < SHARES[encoder]).astype(np.float64)


def result(task: Task, encoder: str, protocol: str, *, corpus: str = "c") -> tuple[Row, Resamples]:
    """A row in the evaluator's format; every metric is a share of correct items."""
    own = task.under(protocol)
    hits_N = hits(encoder, task.name)
    weights_RN = resample_weights(UNITS, resamples=200, seed=0)
    values_R = weights_RN @ hits_N / weights_RN.sum(axis=1)
    names = [own.metric, *own.extra_metrics]
    values_MR = np.stack([values_R] * len(names))
    digest = sha256(values_MR.tobytes()).hexdigest()[:16]
    bounds = list(central_interval(values_R))
    row = {
        "task": task.name,
        "encoder": encoder,
        "protocol": protocol,
        "metric": own.metric,
        "value": float(hits_N.mean()),
        "interval": bounds,
        "layer": 2,
        "learning_rate": own.fit.learning_rates[0],
        "seeds": list(own.fit.seeds),
        "test_items": ITEMS.get(task.name, 50),
        "digests": {"checkpoint": encoder, "corpus": corpus, "features": "f"},
        "bootstrap": {"resamples": 200, "seed": 0, "units": "u", "metrics": names, "values": digest},
        "difference_to": {},
        "extra": {
            "head": own.fit.head,
            "layers": [0, 1, 2],
            "layer_name": "block 2",
            "layer_profile": [0.1, 0.2, 0.3],
            "learning_rates": list(own.fit.learning_rates),
            **{n: {"value": float(hits_N.mean()), "interval": bounds} for n in own.extra_metrics},
        },
    }
    return row, {digest: values_MR}


def write(folder: Path, tasks: tuple[Task, ...], encoders: tuple[str, ...], *protocols: str, corpus: str = "c") -> Path:
    made = [result(t, e, p, corpus=corpus) for p in protocols for t in tasks for e in encoders]
    write_results(folder, [row for row, _ in made], {k: v for _, drawn in made for k, v in drawn.items()})
    return folder


def board(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in words]))


def task(name: str) -> Task:
    return next(t for t in ALL_TASKS if t.name == name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leaderboard of all tasks, three encoders and both protocols."""
    out = write(tmp_path_factory.mktemp("boards"), ALL_TASKS, tuple(SHARES), "marble", "clean")
    assert board(out) == 0
    return out


def sections(folder: Path) -> dict[str, list[str]]:
    """The lines of leaderboard.md by title of the table."""
    text = (folder / "leaderboard.md").read_text()
    return {part.splitlines()[0]: part.splitlines()[1:] for part in text.split("\n## ")[1:]}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_global_and_local_tasks_have_tables_of_their_own(folder: Path):
    """Beats and chords are local, all others global; MARBLE's and the offline tasks have separate tables."""
    found = sections(folder)
    heads = {title: next(line for line in lines if line.startswith("| encoder")) for title, lines in found.items()}
    assert cells(heads["MARBLE, local tasks"])[5:] == ["GTZAN beat F1", "Chords1217, frame accuracy"]
    assert cells(heads["Offline, local tasks"])[5:] == ["Beats"]
    assert len(cells(heads["MARBLE, global tasks"])[5:]) == 16
    assert cells(heads["Offline, global tasks"])[5:] == ["Key", "Instruments", "Tempo and density", "Collection"]


def test_every_row_states_protocol_layer_and_learning_rate(folder: Path):
    """Measured rows state what was tried, published ones what their source states."""
    lines = sections(folder)["MARBLE, local tasks"]
    rows = {tuple(cells(line)[:2]): cells(line) for line in lines if line.startswith("| ")}
    assert rows["base", "marble"][1:5] == ["marble", "best of 3", "lr 0.001", "measured here"]
    assert rows["base", "clean"][1:5] == ["clean", "best of 3", "lr best of 6", "measured here"]
    about = ["as published", "not stated", "not stated", "arXiv:2606.25713"]
    assert rows["MuQ (310 M)", "as published"][1:] == [*about, "90.1", "\N{EN DASH}"]
    assert rows["MERT-v2-30s (632 M)", "as published"][2:4] == ["best per task", "best of 5 per task"]
    chosen = [cells(line) for line in sections(folder)["MARBLE, local tasks: what was chosen on validation"]]
    assert ["base", "marble", "block 2 lr 0.001 mlp512", "block 2 lr 0.001 mlp512"] in chosen


def test_published_numbers_stand_beside_protocol_marble_and_apart_from_clean(folder: Path):
    """There are three groups in this order; the last states that it is not comparable with the others."""
    headings = [cells(x)[0] for x in sections(folder)["MARBLE, global tasks"] if x.startswith("| *")]
    assert [h.split(",")[0].strip("*") for h in headings] == [
        "Measured here under protocol marble",
        "Published",
        "Measured here under protocol clean: other stopping",
    ]
    assert "not comparable with the published numbers or with protocol marble" in headings[2]


def test_the_offline_tables_suggest_no_published_numbers(folder: Path):
    for title, lines in sections(folder).items():
        if title.startswith("Offline"):
            assert not any("as published" in line or "arXiv" in line for line in lines)
    text = "\n".join(sections(folder)["Offline, global tasks"])
    assert "there are no published numbers for them" in text


def test_other_data_carries_a_mark_and_a_note(folder: Path):
    """GTZAN's genre has 100 test tracks instead of MARBLE's 290 and is marked; GiantSteps has all."""
    lines = sections(folder)["MARBLE, global tasks"]
    head = cells(next(x for x in lines if x.startswith("| encoder")))
    row = cells(next(x for x in lines if x.startswith("| base | marble")))
    assert "†" in row[head.index("GTZAN genre, accuracy")]
    assert "†" not in row[head.index("GiantSteps key, weighted")]
    assert any(
        "† GTZANGenre, protocol marble: other data: 100 test items, where MARBLE's test split has 290" in x
        for x in lines
    )


def test_differences_are_paired_by_unit(folder: Path, capsys: pytest.CaptureFixture[str]):
    """A difference's interval is that of resampled differences of the same items, narrower than unpaired."""
    assert board(folder, "--compare", "large", "random_init") == 0
    line = next(
        x for x in capsys.readouterr().out.splitlines() if x.startswith("| GiantSteps: key | marble | weighted")
    )
    difference_N = hits("large", "GS") - hits("random_init", "GS")
    weights_RN = resample_weights(UNITS, resamples=200, seed=0)
    low, high = central_interval(weights_RN @ difference_N / weights_RN.sum(axis=1))
    shown = cells(line)[-1]
    assert shown == f"**+{100 * difference_N.mean():.1f}** [{100 * low:.1f}, {100 * high:.1f}]"
    rows = {r["encoder"]: r for r in read_results(folder) if (r["task"], r["protocol"]) == ("GS", "marble")}
    unpaired = sum(b - a for a, b in (rows[e]["interval"] for e in ("large", "random_init")))
    assert high - low < unpaired
    same = cells(next(x for x in sections(folder)["MARBLE, global tasks: differences to random_init, in points"]
                      if x.startswith("| large | marble")))  # fmt: skip
    assert shown in same


def test_encoders_of_two_evaluations_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Results in two folders give the differences of one evaluation of both."""
    one = write(tmp_path / "one", (task("GS"),), ("base", "random_init"), "clean")
    other = write(tmp_path / "other", (task("GS"), task("EMO")), ("large", "random_init"), "clean")
    board(one, other / "results.jsonl", "--compare", "large", "base")
    apart = capsys.readouterr().out
    both = write(tmp_path / "both", (task("GS"),), tuple(SHARES), "clean")
    board(both, "--compare", "large", "base")
    assert capsys.readouterr().out == apart
    assert "EMO" not in apart


def test_what_cannot_be_paired_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With other bootstrap seeds, or none kept, there is a reason instead of an interval."""
    folder = write(tmp_path, (task("GS"),), ("base", "large"), "clean")
    rows = read_results(folder)
    for change, reason in (({"seed": 1}, "other resamples"), ({"values": "gone"}, "no resamples kept")):
        changed = [rows[0] | {"bootstrap": rows[0]["bootstrap"] | change}, rows[1]]
        (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in changed))
        board(folder, "--compare", "base", "large")
        assert f"\N{EN DASH} {reason} |" in capsys.readouterr().out


def test_two_test_sets_of_one_task_are_refused(tmp_path: Path):
    one = write(tmp_path / "one", (task("GS"),), ("base",), "clean", corpus="c1")
    other = write(tmp_path / "other", (task("GS"),), ("large",), "clean", corpus="c2")
    with pytest.raises(UserError, match="GS was measured on different data for base and large"):
        board(one, other)


def test_wrong_names_are_answered(tmp_path: Path, folder: Path):
    """A folder without results, a misspelt encoder and an ambiguous name are clear errors."""
    with pytest.raises(UserError, match=r"no results.jsonl in .*nowhere.*python -m distributed evaluate"):
        board(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no encoder 'bose' was measured.*did you mean 'base'"):
        board(folder, "--compare", "bose", "large")
    one = write(tmp_path / "one", (task("GS"),), ("base", "random_init"), "clean")
    row, drawn = result(task("GS"), "random_init", "clean")
    write_results(tmp_path / "other", [row | {"digests": row["digests"] | {"checkpoint": "wider"}}], drawn)
    with pytest.raises(UserError, match="'random_init' is 2 encoders with different weights; say which"):
        board(one, tmp_path / "other", "--compare", "base", "random_init")
    assert board(one, tmp_path / "other", "--compare", "base", f"random_init ({tmp_path / 'other'})") == 0


def test_all_three_formats_hold_the_same_numbers(folder: Path):
    """Markdown, HTML and LaTeX have the same scores and intervals."""
    line = next(x for x in sections(folder)["MARBLE, global tasks"] if x.startswith("| large | marble"))
    page, latex = (folder / "leaderboard.html").read_text(), (folder / "leaderboard.tex").read_text()
    for cell in cells(line)[5:]:
        value, _, bounds = cell.replace("*", "").partition(" ")
        assert f"<small>{bounds}</small>" in page
        assert value.rstrip("†") in page
        assert f"{{\\scriptsize {bounds}}}" in latex
    assert latex.isascii()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.mark.parametrize(
    "view", [View(375, 800), View(375, 800, dark=True), View(1920, 1080), View(1920, 1080, dark=True)], ids=str
)
@pytest.mark.parametrize("page", ["leaderboard.html", "results.html"])
def test_the_pages_fit_every_screen_and_can_be_read(browser: Browser, folder: Path, page: str, view: View):
    """Nothing overflows, wide tables scroll under their first column, and all text has WCAG's contrast."""
    visit = browser.visit((folder / page).as_uri(), LEGIBLE, view=view)
    assert visit.errors == []
    assert [url for url in visit.requests if url.startswith("http")] == []
    assert visit.result["unreadable"] == 0
    assert visit.result["overflow"] <= 0
    if view.width < 500:
        assert visit.result["scrolls"]
        assert abs(visit.result["first"]) < 2


def test_marbles_tasks_are_all_on_the_board(folder: Path):
    """Each task has at least one column of scores, in the table of its kind."""
    chosen = [cells(x) for title, lines in sections(folder).items() if "chosen" in title for x in lines[1:2]]
    assert {t.name for t in MARBLE_TASKS} <= {name for head in chosen for name in head}
