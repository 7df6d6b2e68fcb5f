"""Memory by moment of a step: what each stage shards, what DeepSpeed adds, what fits."""

import pytest

from distributed.engine import batch_sizes
from distributed.experiment import load_experiment
from distributed.memory_fit import USABLE, fits, peak
from distributed.memory_plan import plan_memory, trained_entries
from pupujepa.cost import count_parameters

RANKS = 4
# entries: 8 MB, far less than the demo model has
BUCKET = "engine.deepspeed.zero_optimization.reduce_bucket_size=200000"


def moments(*overrides, micro_batch=4, accumulation=1, world_size=RANKS, on_cpu=False):
    batch = micro_batch * accumulation * world_size
    experiment = load_experiment(
        ["demo"], overrides=[f"stream.global_batch={batch}", f"engine.micro_batch={micro_batch}", *overrides]
    )
    sizes = batch_sizes(batch, micro_batch=micro_batch, world_size=world_size)
    return plan_memory(experiment, sizes, world_size=world_size, on_cpu=on_cpu)


@pytest.fixture(scope="module")
def by_stage():
    return [moments(f"engine.zero_stage={stage}", BUCKET) for stage in range(4)]


def test_each_stage_shards_more(by_stage):
    """From stage 1 on the optimiser's share falls with the ranks, from 2 the gradients', at 3 weights and teacher."""
    counts = count_parameters(load_experiment(["demo"]).model)
    all_, own = 4 * counts.trained, counts.trained
    updates = [moment["update"] for moment in by_stage]
    assert [m.optimizer for m in updates] == [2 * all_] + [3 * own] * 3
    assert [m.gradients for m in updates] == [all_] * 2 + [own] * 2
    assert [m.parameters for m in updates[:3]] == [all_] * 3
    small = sum(n for n in trained_entries(load_experiment(["demo"]).model) if n < 100_000)
    assert updates[3].parameters == own + 4 * small
    assert [m.teacher for m in updates] == [4 * counts.encoder] * 3 + [counts.encoder]


def test_entries_are_the_trained_parameters():
    """Sizes of single tensors add up to the counts that arithmetic gives."""
    model = load_experiment(["tiny"]).model
    assert sum(trained_entries(model)) == count_parameters(model).trained


def test_the_bucket_is_as_large_as_the_model_unless_it_is_set(by_stage):
    """Under stages 2 and 3, four bytes for each parameter up to 200 MB; none below, but a copy while it is reduced."""
    assert by_stage[2]["backward"].buffers == 800_000
    trained = sum(trained_entries(load_experiment(["demo"]).model))
    assert moments("engine.zero_stage=2")["backward"].buffers == 4 * trained
    assert moments("engine.zero_stage=2", "model=base", micro_batch=1)["backward"].buffers == 200_000_000
    assert [moment["backward"].buffers for moment in by_stage[:2]] == [0, 0]
    assert by_stage[1]["reduce"].buffers == 800_000


def test_recomputing_trades_activations(by_stage):
    """Blocks that are recomputed keep a fraction, and nothing else changes."""
    recomputed = moments("engine.zero_stage=1", BUCKET, "engine.activation_checkpointing=true")
    kept = by_stage[1]["forward"]
    assert recomputed["forward"].activations < 0.5 * kept.activations
    assert (recomputed["forward"].optimizer, recomputed["forward"].teacher) == (kept.optimizer, kept.teacher)


def test_accumulated_gradients_are_there_from_the_start():
    """A second micro-batch meets the gradients of the first: whole ones below stage 2, a part from then on."""
    trained = count_parameters(load_experiment(["demo"]).model).trained
    for stage, expected in ((0, 4 * trained), (1, 4 * trained), (2, trained), (3, trained)):
        assert moments(f"engine.zero_stage={stage}", BUCKET, accumulation=2)["forward"].gradients == expected


def test_an_optimiser_on_the_host_is_not_on_the_device(by_stage):
    """Its states and temporaries are gone."""
    offloaded = moments("engine.zero_stage=1", BUCKET, "engine.offload_optimizer=true")
    assert offloaded["forward"].optimizer == 0
    assert offloaded["update"].total < by_stage[1]["update"].total


def test_what_is_said_to_fit_fits_and_the_next_does_not():
    """The largest micro-batch of each setting, of those that divide the batch."""
    experiment = load_experiment(["demo"], overrides=["stream.global_batch=256", "engine.zero_stage=1", BUCKET])
    limit = 0.12e9
    found = list(fits(experiment, world_size=RANKS, device_bytes=limit))
    assert [(fit.zero_stage, fit.recomputed) for fit in found] == [(s, r) for r in (False, True) for s in (1, 2, 3)]
    for fit in found:
        assert 0 < fit.micro_batch <= 64
        assert fit.peak_bytes <= USABLE * limit
    kept = found[0]
    twice = load_experiment(
        ["demo"], overrides=["stream.global_batch=256", f"engine.micro_batch={2 * kept.micro_batch}", BUCKET]
    )
    sizes = batch_sizes(256, micro_batch=2 * kept.micro_batch, world_size=RANKS)
    assert peak(twice, sizes, world_size=RANKS)[1].total > USABLE * limit
