"""Runs on real ranks that are watched: rolled back after an alarm, probed while they train, and told of in metrics.

All are made in one launch; each test looks at some of them.
"""

import json
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from distributed.checkpoint import committed
from distributed.experiment import load_experiment
from distributed.export import model_of
from distributed.guard import PROBE_MEAN
from distributed.in_loop_probe import FEATURES_FOLDER
from distributed.respond import ALARM_NAME, ALARMS_FOLDER, PICTURES_NAME
from distributed.rollback import Rollback, read_rollbacks
from distributed.saved_engine import MOMENTS, WEIGHTS, SavedEngine
from distributed.session_state import ENGINE_FOLDER
from pupujepa.schedules import learning_rate
from tests.distributed.launch import PRESET, deterministic_rows, losses
from tests.distributed.marble.corpora import Recipe, make_corpus

# every look at the weights from step 10 on is an alarm
ALARMED = ["guard.action=rollback", "guard.unexplained_below=1.0", "guard.unexplained_after=0.5"]
ALARMED += ["guard.unexplained_steps=0", "guard.cosine_above=2", "diagnostics.every=5", "checkpoint.every=5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, run_jobs):
    """Two ranks: rolled back twice at stage 3, straight and stopped in between; probed and not probed at stage 1.

    One more is stopped between its rollbacks at stage 1, and goes on alone at stage 2.
    """
    root = tmp_path_factory.mktemp("watched")
    corpus = make_corpus(root / "corpus", Recipe(pieces=48))

    def job(name, *overrides, **more):
        return {"run_dir": str(root / name), "url": shards, "overrides": list(overrides)} | more

    alarmed, short = (*ALARMED, "engine.zero_stage=3"), ("train.steps=14", "engine.zero_stage=1")
    kept = ("checkpoint.every=6", "checkpoint.keep=1", f"checkpoint.keep_best={PROBE_MEAN}")
    jobs = [
        job("plain", *short),
        job("probed", *short, *kept, "probe.every_steps=6", f"probe.data={corpus}"),
        job("moved", *ALARMED, "engine.zero_stage=1", stop_at=12),
        # stage 3 last: DeepSpeed then replaces torch's linear function for the rest of the process
        job("straight", *alarmed),
        job("stopped", *alarmed, stop_at=12),
        job("stopped", *alarmed),
    ]
    run_jobs(root, (2, jobs))
    run_jobs(root, (1, [job("moved", *ALARMED, "engine.zero_stage=2")]))
    return root


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_rollback_puts_the_healthy_weights_back(runs):
    """Checkpoint 10 holds what checkpoint 5 held: student, predictor and teacher; 15, after the second one, what 10."""
    five, ten, fifteen = (committed(runs / "straight" / "checkpoints", step=step) for step in (5, 10, 15))
    for healthy, rolled_back in ((five, ten), (ten, fifteen)):
        before, after = model_of(healthy).state_dict(), model_of(rolled_back).state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before)
        teacher = "teacher.safetensors"
        before, after = load_file(healthy.path / teacher), load_file(rolled_back.path / teacher)
        assert all(torch.equal(after[key], before[key]) for key in before)
    assert read_rollbacks(five.path) == ()
    assert read_rollbacks(fifteen.path) == (
        Rollback(10, 5, 0.5, ("unexplained",)),
        Rollback(15, 10, 0.5, ("unexplained",)),
    )


def test_the_optimizer_is_rolled_back_too(runs):
    """Moments of other weights would carry them back to where they came from."""
    five, ten = (committed(runs / "straight" / "checkpoints", step=step).path / "engine" for step in (5, 10))
    files = sorted(path.name for path in five.glob("*optim_states.pt"))
    assert len(files) == 2
    for name in files:
        before, after = (list(tensors(torch.load(folder / name, weights_only=False))) for folder in (five, ten))
        assert len(before) == len(after) > 3
        assert all(torch.equal(a, b) for a, b in zip(after, before))


def tensors(tree):
    if torch.is_tensor(tree):
        yield tree
    elif isinstance(tree, dict):
        for key in sorted(tree, key=str):
            yield from tensors(tree[key])
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors(item)


def test_the_samples_go_on_and_the_rate_is_halved(runs):
    """No step is trained twice, and the schedule goes on at a half, then a quarter of its rate."""
    experiment = load_experiment([str(PRESET)])
    rows = [row for row in rows_of(runs / "straight") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(20))
    for row in rows:
        factor = 1.0 if row["step"] < 10 else 0.5 if row["step"] < 15 else 0.25
        assert row["lr"] == learning_rate(row["step"], 20, experiment.schedule) * factor
    assert losses(runs / "straight")[:10] != losses(runs / "straight")[10:]


def test_a_rolled_back_run_is_resumed_to_the_last_bit(runs):
    """Stopped between two rollbacks, it knows the first one when it goes on, and makes the second."""
    assert deterministic_rows(runs / "stopped") == deterministic_rows(runs / "straight")


def test_a_run_is_rolled_back_to_what_other_ranks_have_saved(runs):
    """Alone at stage 2, to the checkpoint of two ranks at stage 1: its weights, moments and teacher are back."""
    ten, fifteen = (committed(runs / "moved" / "checkpoints", step=step) for step in (10, 15))
    assert [(c.facts["world_size"], c.facts["zero_stage"]) for c in (ten, fifteen)] == [(2, 1), (1, 2)]
    assert read_rollbacks(fifteen.path)[-1] == Rollback(15, 10, 0.5, ("unexplained",))
    before, after = model_of(ten).state_dict(), model_of(fifteen).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    saved = [
        SavedEngine(found.path / ENGINE_FOLDER, world_size=ranks, stage=stage, order=[])
        for found, ranks, stage in ((ten, 2, 1), (fifteen, 1, 2))
    ]
    names = [name for name in before if not name.startswith("teacher.")]
    for name, key in product(names, (WEIGHTS, *MOMENTS)):
        assert torch.equal(saved[1].whole(name, key), saved[0].whole(name, key))
    assert saved[0].optimizer_steps == saved[1].optimizer_steps


def test_the_history_tells_of_rollbacks(runs):
    """Each session with its own; the run that was stopped made one in each."""
    sessions = json.loads((runs / "stopped" / "history.json").read_text())
    assert [[r["step"] for r in session["rollbacks"]] for session in sessions] == [[10], [15]]
    assert sessions[0]["rollbacks"][0]["to_step"] == 5


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


def test_gradients_by_module_add_up(runs):
    """Their squares are those of the whole gradient, over all ranks, at stages 1 and 3."""
    for name in ("plain", "straight"):
        for row in rows_of(runs / name):
            if "loss" in row:
                parts = [row[f"grad_norm/{module}"] for module in ("patch_embed", "student", "predictor")]
                assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-5)


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


def test_rows_tell_what_was_foreseen_in_the_training_batches(runs):
    """By strategy and by band, beside the diagnostics of the probe set."""
    rows = [row for row in rows_of(runs / "plain") if "loss" in row]
    assert all(row["batch/explained_variance"] < 1 for row in rows)
    assert {f"batch/explained_variance_band_{band}" for band in range(8)} <= rows[0].keys()
    assert {name for row in rows for name in row if name.startswith("batch/explained_variance_")} >= {
        f"batch/explained_variance_{name}" for name in ("random", "block", "time_frequency")
    }
    assert {f"batch/{what}_{of}" for what in ("std", "cosine") for of in ("target", "prediction")} <= rows[0].keys()
