"""What the engine can be asked for without asking for another training: offload, recomputing, compiling, a cut teacher.

Six steps of one experiment on two real ranks, in every combination; float32 throughout, or computed in bf16.
"""

import json

import pytest

from distributed.engine.deepspeed_settings import ALLOWED
from distributed.run.log import read_metrics
from tests.distributed.launch import deterministic_rows, losses
from tests.distributed.plain_loop import train_plainly

STAGES = (1, 2, 3)
# sums in another order: in float32 the last digits differ, in bf16 such a digit may round to the next number of 8 bits
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-3
OFFLOAD, BF16 = "engine.offload_optimizer=true", "engine.precision=bf16"
STOPPED_AT, OVERFLOW_AT = 3, 2
# another value than DeepSpeed's or ours for every key that a user may add to its JSON
ADDED = {key: 1000 for key in ALLOWED if key.startswith("zero_optimization.")} | {"wall_clock_breakdown": "true"}
QUICK = ("train.steps=6", "schedule.peak_lr=0.005", "diagnostics.every=0")


def variants():
    """Overrides by name; stage 3 comes last, as DeepSpeed then replaces torch's linear function for the process."""
    runs = {}
    for stage in STAGES:
        zero = f"engine.zero_stage={stage}"
        runs[f"{stage}-fp32"] = (zero,)
        runs[f"{stage}-bf16"] = (zero, BF16)
        runs[f"{stage}-fp32-recomputed"] = (zero, "engine.activation_checkpointing=true")
        runs[f"{stage}-fp32-offload"] = (zero, OFFLOAD, "engine.micro_batch=2")
        runs[f"{stage}-bf16-offload"] = (zero, BF16, OFFLOAD)
        runs[f"{stage}-fp32-added"] = (zero, *(f"engine.deepspeed.{key}={value}" for key, value in ADDED.items()))
        # cut under stage 3, whole under the others, unless asked for
        runs[f"{stage}-fp32-otherwise"] = (zero, f"engine.shard_teacher={str(stage != 3).lower()}")
    everything = (BF16, OFFLOAD, "engine.micro_batch=2", "engine.activation_checkpointing=true")
    runs["3-bf16-offload"] = ("engine.zero_stage=3", *everything)
    return runs


VARIANTS = variants()
COMPILED = {"1-fp32-compiled": ("engine.zero_stage=1", "engine.compile=aot_eager")}
# what the first half of a run is trained with, and the second
CHANGED = {
    "1-fp32-changed": (
        ("engine.zero_stage=1", "engine.shard_teacher=true"),
        ("engine.zero_stage=1", OFFLOAD, "engine.micro_batch=1"),
    ),
    "3-fp32-changed": (
        ("engine.zero_stage=3", OFFLOAD),
        ("engine.zero_stage=3", "engine.shard_teacher=false", "engine.activation_checkpointing=true"),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards, run_jobs):
    """Every run on two ranks, and those that are compared with a single process on one."""
    root = tmp_path_factory.mktemp("runs")

    def job(name, overrides, **more):
        return {"run_dir": str(root / name), "url": shards, "overrides": [*QUICK, *overrides]} | more

    on_two = [job(name, overrides) for name, overrides in COMPILED.items()]
    # before any stage 3, after which the last bits of the other stages differ too
    overflows = [job(f"{stage}-overflow", (f"engine.zero_stage={stage}",), overflow_at=OVERFLOW_AT) for stage in STAGES]
    on_two += overflows[:-1]
    on_two += [job(name, overrides, shadow=name.endswith("otherwise")) for name, overrides in VARIANTS.items()]
    for name, (first, second) in CHANGED.items():
        on_two += [job(name, first, stop_at=STOPPED_AT), job(name, second)]
    on_two += overflows[-1:]
    on_one = [job("one-fp32", ("engine.zero_stage=1",)), job("one-bf16", ("engine.zero_stage=1", BF16))]
    on_one.append(job("one-fp32-offload", ("engine.zero_stage=1", OFFLOAD, "engine.micro_batch=2")))
    run_jobs(root, (2, on_two), (1, on_one))
    return root


@pytest.fixture(scope="module")
def plain(shards):
    """The losses of a plain torch loop, by precision."""
    return {"fp32": train_plainly(shards, *QUICK).losses, "bf16": train_plainly(shards, *QUICK, BF16).losses}


@pytest.mark.parametrize("name", [*VARIANTS, *COMPILED, *CHANGED, "one-fp32", "one-bf16", "one-fp32-offload"])
def test_the_losses_are_those_of_a_plain_loop(runs, plain, name):
    """Stage, world, micro-batch, offload, recomputing, compiling, a cut teacher, added keys: none changes the losses.

    Nor does changing between them in the middle of a run.
    """
    precision = name.split("-")[1]
    tolerance = {"fp32": FP32_TOLERANCE, "bf16": BF16_TOLERANCE}[precision]
    expected = plain[precision]
    assert losses(runs / name) == pytest.approx(expected, rel=tolerance)
    assert expected[-1] < 0.95 * expected[0]


def test_the_tolerances_tell_trainings_apart(runs):
    """bf16 is seen to be bf16: its losses differ from those of float32 by more than stages in float32 may."""
    assert losses(runs / "one-bf16") != pytest.approx(losses(runs / "one-fp32"), rel=FP32_TOLERANCE)


@pytest.mark.parametrize("variant", ["recomputed", "otherwise"])
@pytest.mark.parametrize("stage", STAGES)
def test_recomputing_and_cutting_the_teacher_move_no_bit(runs, stage, variant):
    """Losses and gradients are equal to the last digit: the same numbers, computed again or gathered from parts."""
    ours, plain = (deterministic_rows(runs / f"{stage}-fp32{name}") for name in (f"-{variant}", ""))
    for row in (*ours, *plain):
        # a sum over parts is rounded in another order
        del row["teacher/moved"]
    assert ours == plain


@pytest.mark.parametrize("stage", STAGES)
def test_a_cut_teacher_is_the_average_of_the_student(runs, stage):
    """Cut under stages 1 and 2 and whole under 3, it equals a plain average of the whole student to 1e-7, and moved."""
    report = json.loads((runs / f"{stage}-fp32-otherwise" / "shadow.json").read_text())
    assert report["gap"] < 1e-7
    assert report["moved"] > 1e-3
    assert not any("patch_embed" in name for name in report["names"])


def test_a_rank_keeps_half_of_a_cut_teacher(runs):
    """Two ranks hold the blocks once between them; what is not in blocks, a final norm here, each holds whole."""
    whole, other = json.loads((runs / "3-fp32-otherwise" / "shadow.json").read_text())["held_bytes"]
    assert whole == other
    first, second = json.loads((runs / "1-fp32-otherwise" / "shadow.json").read_text())["held_bytes"]
    final_norm = 4 * 2 * 32
    assert first + second == whole + final_norm
    assert max(first, second) < 0.52 * whole


@pytest.mark.parametrize("stage", STAGES)
def test_every_row_says_that_the_teacher_moved(runs, stage):
    """And by the same amount under every stage, whole or cut."""
    whole, cut, plain = (
        [row["teacher/moved"] for row in deterministic_rows(runs / name)]
        for name in (f"{stage}-fp32", f"{stage}-fp32-otherwise", "one-fp32")
    )
    assert min(plain) > 1e-4
    assert whole == pytest.approx(plain, rel=1e-3)
    assert cut == pytest.approx(plain, rel=1e-3)


def test_the_json_that_was_generated_lies_in_the_run(runs):
    """deepspeed.json is what DeepSpeed was started with: batch sizes of this world, stage and offload."""
    started = json.loads((runs / "3-bf16-offload" / "deepspeed.json").read_text())
    assert (started["train_batch_size"], started["train_micro_batch_size_per_gpu"]) == (8, 2)
    assert started["gradient_accumulation_steps"] == 2
    assert started["zero_optimization"]["stage"] == 3
    assert started["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_the_added_keys_reach_deepspeed(runs):
    """The JSON of each run holds them all."""
    assert ADDED.keys() == set(ALLOWED)
    for stage in STAGES[1:]:
        started = json.loads((runs / f"{stage}-fp32-added" / "deepspeed.json").read_text())
        zero = {f"zero_optimization.{key}": value for key, value in started["zero_optimization"].items()}
        assert (zero | started).items() >= (ADDED | {"wall_clock_breakdown": True}).items()


def test_an_infinite_loss_is_left_out_under_every_stage(runs):
    """On both ranks, though it is one rank's: every stage trains the other steps alike, and not as without it."""
    left_out, trained = {}, {}
    for stage in STAGES:
        rows = read_metrics(runs / f"{stage}-overflow" / "metrics.jsonl")
        left_out[stage] = [row["step"] for row in rows if row.get("skipped")]
        trained[stage] = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert left_out == {stage: [OVERFLOW_AT] for stage in STAGES}
    assert sorted(trained[1]) == [step for step in range(6) if step != OVERFLOW_AT]
    for stage in STAGES[1:]:
        assert trained[stage] == pytest.approx(trained[1], rel=FP32_TOLERANCE)
    plain = losses(runs / "1-fp32")
    assert trained[1][OVERFLOW_AT - 1] == plain[OVERFLOW_AT - 1]
    assert trained[1][OVERFLOW_AT + 1] != plain[OVERFLOW_AT + 1]
