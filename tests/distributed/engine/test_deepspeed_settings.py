"""What may be added to DeepSpeed's JSON: the tested keys, which arrive; any other is refused by name."""

import pytest

from distributed.engine.deepspeed_settings import ALLOWED, check_additions, with_additions
from distributed.engine.engine import BatchSizes, EngineConfig, OptimizerConfig, deepspeed_json
from distributed.experiment import load_experiment
from pupujepa.errors import UserError


def nested(dotted, value):
    for word in reversed(dotted.split(".")):
        value = {word: value}
    return value


def flat(tree, prefix=""):
    """Yields dotted keys with their values."""
    for key, value in tree.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@pytest.mark.parametrize(
    "key",
    [
        "gradient_clipping",
        "fp16.enabled",
        "zero_optimization.stage",
        "zero_optimization.overlap_comm",
        "zero_optimization.brand_new",
        "zero_optimization.reduce_bucket_size.deeper",
        "brand_new",
    ],
)
def test_a_key_that_is_not_tested_is_refused_by_name(key):
    """One sentence names the key and the keys that may be added instead."""
    with pytest.raises(UserError, match=rf"engine\.deepspeed\.{key} is not tested .* remove it or use one of zero_opt"):
        EngineConfig(deepspeed=nested(key, 1))


def test_nothing_that_is_generated_can_be_overwritten():
    """Each leaf of the JSON, also with the optimiser on the host, is refused, but for the size of the bucket."""
    engine = EngineConfig(zero_stage=2, offload_optimizer=True)
    generated = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    assert dict(flat(generated)).keys() & set(ALLOWED) == {"zero_optimization.reduce_bucket_size"}


@pytest.mark.parametrize("key", ALLOWED)
def test_a_tested_key_is_added_beside_what_is_generated(key):
    """It arrives in the JSON with its value, and nothing else changes."""
    plain = deepspeed_json(EngineConfig(), OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    engine = EngineConfig(deepspeed=nested(key, 1000))
    added = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    assert dict(flat(added)) == dict(flat(plain)) | {key: 1000}


def test_a_section_is_not_replaced_by_a_value():
    """zero_optimization=false would drop the stage without a word."""
    with pytest.raises(UserError, match=r"engine\.deepspeed\.zero_optimization is not tested"):
        check_additions({"zero_optimization": False})


def test_merging_leaves_its_inputs_alone():
    """A frozen configuration stays as it was read."""
    generated, additions = {"zero_optimization": {"stage": 1}}, {"zero_optimization": {"allgather_bucket_size": 5}}
    assert with_additions(generated, additions) == {"zero_optimization": {"stage": 1, "allgather_bucket_size": 5}}
    assert generated == {"zero_optimization": {"stage": 1}}
    assert additions == {"zero_optimization": {"allgather_bucket_size": 5}}


def test_additions_come_from_the_command_line():
    """Dotted, as every other setting, and with its type."""
    key = "engine.deepspeed.zero_optimization.reduce_bucket_size"
    experiment = load_experiment(["demo"], overrides=[f"{key}=1000"])
    assert experiment.engine.deepspeed == {"zero_optimization": {"reduce_bucket_size": 1000}}
    with pytest.raises(UserError, match=r"engine\.deepspeed\.gradient_clipping"):
        load_experiment(["demo"], overrides=["engine.deepspeed.gradient_clipping=1"])
