"""Runs on real ranks that are watched: stopped by the guard, probed while they train, and told of in metrics.

All are made in one launch; each test looks at some of them.
"""

import json

import pytest
from safetensors.torch import load_file

from distributed.checkpoints.reading import committed
from distributed.sessions.export import model_of
from distributed.watch.alarms import ALARM_NAME, ALARMS_FOLDER, PICTURES_NAME
from distributed.watch.config import PROBE_MEAN
from distributed.watch.probes import FEATURES_FOLDER
from tests.distributed.launch import deterministic_rows
from tests.distributed.marble.corpora import Recipe, make_corpus

STEPS, ALARM_AT = 14, 10
# every look at the weights from step 10 on is an alarm
ALARMED = ["guard.unexplained_below=1.0", "guard.unexplained_after=0.7", "guard.unexplained_steps=0"]
ALARMED += ["guard.cosine_above=2", "diagnostics.every=5", "checkpoint.every=5", "checkpoint.keep=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, run_jobs):
    """Two ranks: stopped by the guard twice, then allowed to go on; straight; probed and not probed."""
    root = tmp_path_factory.mktemp("watched")
    corpus = make_corpus(root / "corpus", Recipe(pieces=48))

    def job(name, *overrides, **more):
        given = [f"train.steps={STEPS}", *overrides]
        return {"run_dir": str(root / name), "url": shards, "overrides": given} | more

    kept = ("checkpoint.every=6", "checkpoint.keep=1", f"checkpoint.keep_best={PROBE_MEAN}")
    alarmed = (*ALARMED, "engine.zero_stage=3")
    jobs = [
        job("plain", "engine.zero_stage=1"),
        job("probed", "engine.zero_stage=1", *kept, "probe.every_steps=6", f"probe.data={corpus}"),
        # stage 3 last: DeepSpeed then replaces torch's linear function for the rest of the process
        job("straight", *alarmed, "guard.action=snapshot"),
        job("stopped", *alarmed, "guard.action=stop", code=87),
        job("stopped", *alarmed, "guard.action=stop", code=87),
        job("stopped", *alarmed, "guard.action=snapshot"),
    ]
    run_jobs(root, (2, jobs))
    return root


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_guard_stops_a_run_at_the_alarm(runs):
    """Twice, at the same step, as the second start resumes before it; exit code 87 on both ranks."""
    history = json.loads((runs / "stopped" / "history.json").read_text())
    assert [session["step"] for session in history] == [0, ALARM_AT, ALARM_AT]
    assert committed(runs / "stopped" / ALARMS_FOLDER).step == ALARM_AT


def test_a_stopped_run_goes_on_to_the_last_bit(runs):
    """With another action the same command trains the rest as if the guard had never stopped it."""
    assert deterministic_rows(runs / "stopped") == deterministic_rows(runs / "straight")


def test_an_alarm_leaves_a_snapshot(runs):
    """A whole checkpoint of the weights that gave the alarm, what it said, and what pictures are drawn from."""
    alarms = runs / "straight" / ALARMS_FOLDER
    kept = committed(alarms, step=10)
    assert kept.facts["alarms"] == ["unexplained"]
    assert model_of(kept).state_dict().keys()
    told = json.loads((kept.path / ALARM_NAME).read_text())
    assert "explains nothing beyond a constant" in told["alarms"][0]["sentence"]
    assert told["row"]["diag/effective_rank_teacher"] > 0
    pictures = load_file(kept.path / PICTURES_NAME)
    assert pictures["mel_BTF"].shape == (6, 64, 128)
    assert pictures["error_BM"].shape == pictures["target_BM"].shape
    assert pictures["teacher_BND"].shape == (6, 128, 32)


def test_probes_do_not_touch_the_training(runs):
    """With and without them the rows of the training are the same to the last bit."""
    probed = [row for row in deterministic_rows(runs / "probed") if PROBE_MEAN not in row]
    assert probed == deterministic_rows(runs / "plain")


def test_probes_give_a_curve_of_quality(runs):
    """On their own schedule, and at the end, every metric of every offline task; their features are gone."""
    rows = [row for row in rows_of(runs / "probed") if PROBE_MEAN in row]
    assert [row["step"] for row in rows] == [0, 6, 12, 14]
    for name in ("key/key_weighted", "beats/beat_f1", "beats/downbeat_f1", "instruments/roc_auc", "tempo/r2"):
        assert all(isinstance(row[f"probe/{name}"], float) for row in rows)
    own = ("key/key_weighted", "beats/beat_f1", "instruments/roc_auc", "tempo/r2", "collection/accuracy")
    assert rows[0][PROBE_MEAN] == pytest.approx(sum(rows[0][f"probe/{name}"] for name in own) / 5)
    assert not (runs / "probed" / FEATURES_FOLDER).exists()


def test_the_best_by_the_probes_is_kept(runs):
    """Of the checkpoints of steps 6 and 12, beside the newest of step 14; the other one is gone."""
    means = {row["step"]: row[PROBE_MEAN] for row in rows_of(runs / "probed") if PROBE_MEAN in row}
    best = max((12, 6), key=means.__getitem__)
    there = sorted(path.name for path in (runs / "probed" / "checkpoints").glob("step-*"))
    assert there == [f"step-{best:07d}", "step-0000014"]
    assert committed(runs / "probed" / "checkpoints", step=best).step == best


def test_rows_tell_how_fast_and_how_large(runs):
    """Tokens and hours of audio follow from the crops; percentiles are ordered; a CPU has no known peak."""
    rows = [row for row in rows_of(runs / "plain") if "loss" in row]
    for row in rows:
        assert row["speed/tokens_per_s"] == pytest.approx(row["crops_per_s"] * 128)
        assert row["speed/audio_hours_per_hour"] == pytest.approx(row["crops_per_s"] * 0.64)
        assert 0 < row["speed/step_s_p50"] <= row["speed/step_s_p95"] <= row["speed/step_s_p99"]
        assert row["memory/rss_bytes"] > 2**20
        assert "speed/mfu" not in row
        assert "memory/accelerator_peak_bytes" not in row
