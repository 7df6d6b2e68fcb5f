"""The plan's memory against measured peaks: the bytes that torch's allocator holds at once in a step of real ranks."""

from itertools import product

import pytest

from benchmarks.engine.bare import experiment_of
from benchmarks.engine.launch import on_ranks
from benchmarks.engine.memory import measure_each
from distributed.engine.engine import batch_sizes
from distributed.plan.plan import step_config
from pupujepa.cost.memory import peak_memory

STAGES = (1, 2, 3)
FP32 = "engine.precision=fp32"
# activations are most of the first, parameters of the last, which is larger than its bucket
SIZES = {
    "demo": ("model=demo", "engine.micro_batch=8", FP32),
    "demo, recomputed": (
        *("model=demo", "engine.micro_batch=8", "engine.precision=bf16", "engine.activation_checkpointing=true"),
    ),
    "demo, variant": ("model=demo", "engine.micro_batch=8", FP32, "model.mlp=gelu", "objective.target=full_grid"),
    "tiny": ("model=tiny", "model.crop_frames=128", "model.predictor_depth=2", "engine.micro_batch=2", FP32),
    "small": (
        *("model=small", "model.crop_frames=64", "model.predictor_depth=2", "engine.micro_batch=1", FP32),
        "engine.deepspeed.zero_optimization.reduce_bucket_size=20000000",
    ),
}
CASES = {1: list(product(SIZES, (1, 3))), 2: list(product(SIZES, STAGES))}


def settings_of(size, stage):
    return {"preset": "paper", "overrides": [*SIZES[size], f"engine.zero_stage={stage}"]}


@pytest.fixture(scope="module")
def peaks():
    """Bytes by (ranks, size, stage); all of a number of ranks in one launch."""
    measured = {}
    for ranks, cases in CASES.items():
        cases = sorted(cases, key=lambda case: case[1])
        found = on_ranks(measure_each, {"each": [settings_of(*case) for case in cases]}, ranks=ranks)
        measured |= {(ranks, *case): peak for case, peak in zip(cases, found, strict=True)}
    return measured


@pytest.mark.parametrize(
    ("ranks", "size", "stage"), [(ranks, *case) for ranks, cases in CASES.items() for case in cases]
)
def test_the_plan_is_within_15_per_cent_of_the_measured_peak(peaks, ranks, size, stage):
    """At several sizes and stages, kept and recomputed, of one rank and two."""
    experiment = experiment_of(settings_of(size, stage), ranks=ranks)
    micro_batch = experiment.engine.micro_batch
    sizes = batch_sizes(experiment.stream.global_batch, micro_batch=micro_batch, world_size=ranks)
    _, planned = peak_memory(step_config(experiment, sizes, world_size=ranks, on_cpu=True))
    assert planned.total == pytest.approx(peaks[ranks, size, stage], rel=0.15)
