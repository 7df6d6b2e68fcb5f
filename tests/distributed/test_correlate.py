import argparse
import json
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import pytest
from scipy.stats import spearmanr

from distributed.checkpoint_points import Points, points_of_results, points_of_run
from distributed.correlate import add_arguments, caution, correlations, run
from distributed.run_directory import RunDirectory
from pupujepa.errors import UserError

RANKS = (4.0, 9.0, 6.0, 20.0, 15.0, 30.0)
SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def correlate(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in words]))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path, points: int = 6) -> Path:
    """Diagnostics every 50 steps, probes every 100; the rows of a step come separately, as a trainer writes them."""
    rows = []
    for i, (rank, score) in enumerate(zip(RANKS[:points], SCORES, strict=False)):
        step = 100 * (i + 1)
        rows.append({"step": step - 50, "loss": 1.0, "diag/effective_rank_teacher": 999.0})
        rows.append({"step": step, "loss": 1.0 - score, "diag/effective_rank_teacher": rank, "diag/std_teacher": 1.0})
        rows.append(
            {"step": step, "probe/key/key_weighted": score**2, "probe/mean": score, "probe/beats/beat_f1": None}
        )
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def test_rho_is_scipys_over_the_steps_that_were_probed(tmp_path: Path):
    """Of the diagnostics of the same step; also of the changes from one probe to the next, equal ones being ties."""
    points = points_of_run(RunDirectory(make_run(tmp_path / "r")))
    assert points.names == tuple(f"step {100 * i}" for i in range(1, 7))
    found = {(c.diagnostic, c.score): c for c in correlations(points)}
    own = found["diag/effective_rank_teacher", "probe/mean"]
    assert own.rho == pytest.approx(spearmanr(RANKS, SCORES).statistic)
    assert own.n == 6
    assert own.rho_of_changes is None  # 0.1 each time, but for rounding
    assert found["loss", "probe/mean"].rho == pytest.approx(-1)
    changes = [b - a for a, b in pairwise(RANKS)]
    gains = [b**2 - a**2 for a, b in pairwise(SCORES)]
    assert found["diag/effective_rank_teacher", "probe/key/key_weighted"].rho_of_changes == pytest.approx(
        spearmanr(changes, gains).statistic
    )


def test_what_never_changes_has_no_rho(tmp_path: Path):
    """A constant diagnostic is no evidence, and no warning."""
    points = points_of_run(RunDirectory(make_run(tmp_path / "r")))
    [constant] = [c for c in correlations(points) if (c.diagnostic, c.score) == ("diag/std_teacher", "probe/mean")]
    assert constant.rho is None


def test_diagnostics_serve_one_probe_only(tmp_path: Path):
    """A probe takes the newest diagnostics before it; where none came since the last probe there is no new point.

    The untrained network is none either.
    """
    rows: list[dict] = [{"step": 0, "diag/lidar": 1.0}, {"step": 0, "probe/mean": 0.0}, {"step": 5, "probe/mean": 0.1}]
    for step in (10, 30, 50):
        rows += [{"step": step, "diag/lidar": float(step)}, {"step": step + 5, "probe/mean": step / 100}]
        rows.append({"step": step + 10, "probe/mean": 9.0})
    write_lines(tmp_path / "metrics.jsonl", rows)
    points = points_of_run(RunDirectory(tmp_path))
    assert points.names == ("step 15", "step 35", "step 55")
    assert points.pairs("diag/lidar", "probe/mean") == [(10, 0.1), (30, 0.3), (50, 0.5)]


def test_encoders_of_one_folder_are_points(tmp_path: Path):
    """RankMe and LiDAR of the last layer against kNN, few-shot and trained probes; baselines are no checkpoints."""
    quick, results = [], []
    for i, name in enumerate(["step-1", "step-2", "step-3", "random_init"]):
        common = {"task": "key", "encoder": name, "protocol": "clean"}
        quick.append(common | {"check": "spectrum", "rank": [1.0, 10.0 + i], "lidar": None})
        quick.append(common | {"check": "knn", "value": 0.1 * i})
        quick.append(common | {"check": "few-shot", "shots": 5, "value": 0.2 * i})
        results.append(common | {"value": 0.3 * i})
    write_lines(tmp_path / "quick.jsonl", quick)
    write_lines(tmp_path / "results.jsonl", results)
    points = points_of_results(tmp_path)
    assert points.names == ("step-1", "step-2", "step-3")
    assert points.diagnostics == {"RankMe, key": (10.0, 11.0, 12.0)}
    assert set(points.scores) == {"key, knn", "key, 5-shot", "key, probe, clean"}
    assert [c.rho for c in correlations(points)] == pytest.approx([1, 1, 1])
    assert "not independent" not in caution(points)


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """SVG by default, PNG by its ending; the table and the note say n; what was never a number is no score."""
    folder = make_run(tmp_path / "r")
    assert correlate(folder) == 0
    printed = capsys.readouterr().out
    assert "| diag/effective_rank_teacher | +0.89 |" in printed
    assert "| diag/std_teacher | - |" in printed
    assert "n = 6: unrelated quantities exceed |rho| = 0.88 once in twenty times; so would about 0.1 of" in printed
    assert "not independent" in printed
    drawing = (folder / "correlations.svg").read_text()
    # texts stand in comments beside their outlines: a panel's title, and the key of the dots
    assert all(f"<!-- {text} -->" in drawing for text in ("rho +0.89, n 6", "step 100", "step 600"))
    written = json.loads((folder / "correlations.json").read_text())
    assert written["points"][0] == "step 100" and len(written["correlations"]) == 3 * 2
    assert correlate(folder, "--score", "probe/key/key_weighted", "--plot", tmp_path / "key.png") == 0
    assert matplotlib.image.imread(tmp_path / "key.png").std() > 0


def test_few_points_are_called_few():
    """At four points not even a perfect order would be surprising."""
    column = {"x": (1.0, 2.0, 3.0, 4.0)}
    assert caution(Points(tuple("abcd"), column, column, in_sequence=False)) == (
        "n = 4: no order of so few points would be surprising."
    )


def test_what_cannot_be_correlated_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="one of them, not both"):
        correlate()
    with pytest.raises(UserError, match=r"no metrics.jsonl in"):
        correlate(tmp_path)
    with pytest.raises(UserError, match=r"has 2 checkpoints .* takes at least 3; set probe.data and probe.every_steps"):
        correlate(make_run(tmp_path / "r", points=2))
    with pytest.raises(UserError, match="has 0 checkpoints"):
        correlate("--evaluated", tmp_path)
    with pytest.raises(UserError, match="there is no score 'key'; there are probe/key/key_weighted, probe/mean"):
        correlate(make_run(tmp_path / "s"), "--score", "key")
