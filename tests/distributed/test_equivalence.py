"""Equivalences on real ranks: 1 rank == 2 ranks, ZeRO 1 == 2 == 3 == a plain torch loop, straight == resumed.

The runs are made once, in two launches; each test looks at some of them.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from data.reading.fetching import COUNTED
from distributed.checkpoints.manifest import CheckpointError
from distributed.checkpoints.reading import committed
from distributed.sessions.export import model_of
from pupujepa.weights import weights
from tests.distributed.launch import deterministic_rows, interrupted_copy, losses
from tests.distributed.plain_loop import train_plainly

STAGES = (1, 2, 3)
RESUMED_AT = 7


def zero(stage):
    return f"engine.zero_stage={stage}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, run_jobs):
    """Straight runs: 2 ranks at every stage, with accumulation, in bf16, stopped on the way; and 1 rank."""
    root = tmp_path_factory.mktemp("runs")

    def job(name, *overrides, **more):
        return {"run_dir": str(root / name), "url": shards, "overrides": overrides} | more

    on_two = [job("two-accumulated", zero(2), "engine.micro_batch=2")]
    on_two.append(job("two-bf16", zero(2), "engine.precision=bf16", "stream.workers=1"))
    on_two.append(job("two-stopped", zero(1), stop_at=11))
    # stage 3 last: DeepSpeed then replaces torch's linear function for the rest of the process, whose last bits differ
    on_two += [job(f"two-{stage}", zero(stage), shadow=True) for stage in STAGES]
    run_jobs(root, (2, on_two), (1, [job("one-1", zero(1), shadow=True), job("one-2", zero(2))]))
    return root


@pytest.fixture(scope="module")
def plain(shards):
    """The same training without DeepSpeed, in this process."""
    return train_plainly(shards)


@pytest.fixture(scope="module")
def resumed(runs, shards, run_jobs):
    """Runs continued from the checkpoint of step 7, on 2 ranks and on 1; the same stage unless the name says more."""
    root = runs / "resumed"
    root.mkdir()

    def job(name, source, *overrides):
        interrupted_copy(runs / source, root / name, keep_step=RESUMED_AT)
        return {"run_dir": str(root / name), "url": shards, "overrides": overrides}

    on_two = [job("two-bf16", "two-bf16", zero(2), "engine.precision=bf16", "stream.workers=1")]
    on_two.append(job("two-1-to-2", "two-1", zero(2)))
    on_two.append({"run_dir": str(runs / "two-stopped"), "url": shards, "overrides": [zero(1)]})
    on_two.append(job("one-to-two", "one-2", zero(2)))
    on_two += [job(f"two-{old}-to-{new}", f"two-{old}", zero(new)) for old, new in ((3, 1), (3, 2))]
    on_two += [job(f"two-{stage}", f"two-{stage}", zero(stage)) for stage in STAGES]
    on_two.append(job("two-2-to-3", "two-2", zero(3)))
    on_four = [job("two-2-to-four-1", "two-2", zero(1)), job("two-2-to-four-3", "two-2", zero(3))]
    on_one = [job(f"one-{stage}", f"two-{stage}", zero(stage)) for stage in STAGES]
    run_jobs(root, (2, on_two), (4, on_four), (1, on_one))
    return root


@pytest.mark.parametrize("name", ["two-1", "two-2", "two-3", "two-accumulated", "one-1", "one-2"])
def test_ranks_and_stages_do_not_matter(runs, plain, name):
    """1 and 2 ranks, any stage and micro-batch have the losses and norms of a plain torch loop within 1e-5."""
    assert len(losses(runs / name)) == 20
    assert losses(runs / name) == pytest.approx(plain.losses, rel=1e-5)
    norms = [row["grad_norm"] for row in deterministic_rows(runs / name) if "loss" in row]
    assert norms == pytest.approx(plain.grad_norms, rel=1e-4)


def test_training_does_something(runs):
    """Equal losses would be worth nothing if they stood still."""
    straight = losses(runs / "one-1")
    assert straight[-1] < 0.9 * straight[0]


@pytest.mark.parametrize("name", [f"two-{stage}" for stage in STAGES] + ["one-1"])
def test_the_teacher_is_the_average_of_the_student(runs, name):
    """Under every stage the teacher equals, to 1e-7, a plain average of the whole student, and it has moved."""
    report = json.loads((runs / name / "shadow.json").read_text())
    assert report["gap"] < 1e-7
    assert report["moved"] > 1e-3
    assert report["distance_to_student"] > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_the_teacher_does_not_depend_on_ranks_or_stage(runs, plain, stage):
    """The teacher of two ranks at each stage is the teacher of the plain loop."""
    two = load_file(committed(runs / f"two-{stage}" / "checkpoints").path / "teacher.safetensors")
    assert two.keys() == plain.teacher.keys()
    for name, tensor in plain.teacher.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", [f"two-{stage}" for stage in STAGES] + ["two-bf16"])
def test_straight_equals_resumed_to_the_last_bit(runs, resumed, name):
    """On the same number of ranks an interrupted run logs exactly the rows of a straight one, diagnostics included."""
    assert deterministic_rows(resumed / name) == deterministic_rows(runs / name)


CHANGED = ["two-1-to-2", "one-to-two", "two-3-to-1", "two-3-to-2", "two-2-to-3"]


@pytest.mark.parametrize(
    "name", [f"one-{stage}" for stage in STAGES] + CHANGED + ["two-2-to-four-1", "two-2-to-four-3"]
)
def test_another_world_or_stage_may_continue(runs, resumed, name):
    """From 2 ranks to 1 or 4, from 1 to 2, and from any stage to any, the losses stay within 1e-5 of a straight run."""
    assert len(losses(resumed / name)) == 20
    assert losses(resumed / name) == pytest.approx(losses(runs / "two-1"), rel=1e-5)


def test_one_rank_that_is_asked_to_stop_stops_all(runs, resumed):
    """The request of the last rank alone: both ranks saved the same step, and the run goes on bit for bit."""
    facts = json.loads((runs / "two-stopped" / "facts.json").read_text())
    assert [s["step"] for s in facts["resumed"]] == [12]
    assert deterministic_rows(runs / "two-stopped") == deterministic_rows(runs / "two-1")


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_caught(runs, tmp_path, stage):
    """DeepSpeed's files of every rank, teacher, state, random states, configuration and the manifest itself."""
    shutil.copytree(committed(runs / f"two-{stage}" / "checkpoints").path, tmp_path / "step-0000020")
    files = [path for path in (tmp_path / "step-0000020").rglob("*") if path.is_file()]
    assert len(files) == {1: 9, 2: 9, 3: 10}[stage], files
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=f"{path.name}"):
            committed(tmp_path, step=20)
        path.write_bytes(whole)
    assert committed(tmp_path, step=20).step == 20


@pytest.mark.parametrize("stage", STAGES)
def test_the_export_is_the_checkpoint(runs, stage):
    """The weights gathered from the ranks at the end are those put together from the checkpoint's files."""
    exported = weights.load(runs / f"two-{stage}" / "export").state_dict()
    saved = committed(runs / f"two-{stage}" / "checkpoints")
    from_files = model_of(saved).state_dict()
    assert exported.keys() == from_files.keys()
    for name, tensor in exported.items():
        assert torch.equal(from_files[name], tensor), name
    teacher = load_file(saved.path / "teacher.safetensors")
    assert all(torch.equal(exported[f"teacher.{name}"], tensor) for name, tensor in teacher.items())
    assert not torch.equal(exported["teacher.norm.weight"], exported["student.norm.weight"])


def test_the_rows_hold_what_the_report_needs(runs):
    """Losses per strategy, the schedule, speed and the waiting time; and the diagnostics of teacher and student."""
    rows = [json.loads(line) for line in (runs / "two-2" / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    fields = {"step", "epoch", "loss", "lr", "ema_momentum", "grad_norm", "crops_per_s", "data_wait_s", "step_s"}
    fields |= {f"data/{name}" for name in (*COUNTED, "wait_s")}
    assert all(fields <= row.keys() for row in training)
    assert {k for row in training for k in row if k.startswith("loss_")} == {
        "loss_random",
        "loss_block",
        "loss_time_frequency",
    }
    looked_at = {row["step"]: row for row in rows if "loss" not in row}
    assert sorted(looked_at) == [0, 10, 20]
    for row in looked_at.values():
        for name in ("explained_variance", "explained_variance_position", "effective_rank_teacher", "std_teacher"):
            assert row[f"diag/{name}"] is not None
        assert {f"diag/effective_rank_band_{band}" for band in range(8)} <= row.keys()
    assert looked_at[0]["diag/teacher_moved"] == 0.0
    assert 0 < looked_at[10]["diag/teacher_moved"] < looked_at[20]["diag/teacher_moved"]


def test_diagnostics_are_the_same_under_every_stage(runs):
    """Stage 3 looks at gathered weights, the others at the live ones: the numbers agree."""
    by_stage = [
        {row["step"]: row for row in deterministic_rows(runs / f"two-{stage}") if "loss" not in row} for stage in STAGES
    ]
    for step, row in by_stage[0].items():
        for other in by_stage[1:]:
            assert other[step] == pytest.approx(row, rel=2e-3, abs=1e-4)


def test_the_facts_of_a_run(runs, shards):
    """facts.json holds what the report and the summary read."""
    facts = json.loads((runs / "two-2" / "facts.json").read_text())
    straight = losses(runs / "two-2")
    assert (facts["ranks"], facts["zero_stage"], facts["steps"], facts["global_batch"]) == (2, 2, 20, 8)
    assert (facts["loss_first"], facts["loss_last"]) == (straight[0], straight[-1])
    assert facts["store"] == shards
    assert facts["shards"] == 4
    assert facts["crops_per_s"] > 0
    assert 0 <= facts["data_wait_fraction"] < 1
    assert facts["resumed"] == []
    assert facts["parameters"] == sum(
        t.numel()
        for n, t in weights.load(runs / "two-2" / "export").state_dict().items()
        if not n.startswith("teacher.")
    )
    assert facts["checkpoint"] == "step-0000020"
