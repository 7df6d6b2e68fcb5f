"""What may be added to DeepSpeed's JSON: what contradicts us is refused with the reason, the rest is passed on."""

import pytest

from distributed.deepspeed_additions import REFUSED, check_additions, with_additions
from distributed.engine import BatchSizes, EngineConfig, OptimizerConfig, deepspeed_json
from distributed.experiment import load_experiment
from pupujepa.errors import UserError

# generated, and the user's to set
FREE = {"steps_per_print", "timers.throughput.enabled", "zero_optimization.reduce_bucket_size"}
BUCKETS = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}


def nested(dotted, value):
    for word in reversed(dotted.split(".")):
        value = {word: value}
    return value


def leaves(tree, prefix=""):
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


@pytest.mark.parametrize("key", REFUSED)
def test_what_contradicts_us_is_refused_with_its_reason(key):
    """Every key of the table, by itself or anything below it; the message repeats the key and says why."""
    for additions in (nested(key, 1), nested(f"{key}.deeper", 1)):
        with pytest.raises(UserError, match=rf"engine\.deepspeed\.{key}") as refusal:
            EngineConfig(deepspeed=additions)
        assert REFUSED[key] in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train_batch_size", r"stream\.global_batch"),
        ("gradient_clipping", r"optimizer\.clip_norm"),
        ("optimizer.params.lr", r"optimizer\.\*"),
        ("scheduler.type", r"schedule\.\*"),
        ("fp16.enabled", r"engine\.precision"),
        ("zero_optimization.stage", r"engine\.zero_stage"),
        ("zero_optimization.offload_optimizer.device", r"engine\.offload_optimizer"),
        ("zero_optimization.overlap_comm", "NaN"),
    ],
)
def test_the_reason_names_the_setting_to_use(key, said):
    """Whoever comes with a JSON of another project learns where each of its numbers goes here."""
    with pytest.raises(UserError, match=said):
        check_additions(nested(key, 1))


def test_nothing_that_is_generated_can_be_overwritten():
    """Each leaf of the JSON, also with the optimiser on the host, is refused, but for what changes no number."""
    engine = EngineConfig(zero_stage=2, offload_optimizer=True)
    generated = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    for key in set(leaves(generated)) - FREE:
        with pytest.raises(UserError, match="cannot be added"):
            check_additions(nested(key, 1))


def test_the_rest_is_added_beside_what_is_generated():
    """Buckets and timers, and keys that nobody has heard of, arrive in the JSON; nothing else changes."""
    plain = deepspeed_json(EngineConfig(), OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    engine = EngineConfig(deepspeed=BUCKETS | {"brand_new": 1})
    added = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 2, 2), num_trained=5)
    assert added["zero_optimization"] == plain["zero_optimization"] | {"reduce_bucket_size": 1000}
    assert (added["wall_clock_breakdown"], added["brand_new"]) == (True, 1)
    assert {key: added[key] for key in plain if key != "zero_optimization"} == {
        key: plain[key] for key in plain if key != "zero_optimization"
    }


def test_a_section_is_not_replaced_by_a_value():
    """zero_optimization=false would drop the stage without a word."""
    with pytest.raises(UserError, match="would replace what is generated"):
        check_additions({"zero_optimization": False})


def test_merging_leaves_its_inputs_alone():
    """A frozen configuration stays as it was read."""
    generated, additions = {"zero_optimization": {"stage": 1}}, {"zero_optimization": {"sub_group_size": 5}}
    assert with_additions(generated, additions) == {"zero_optimization": {"stage": 1, "sub_group_size": 5}}
    assert generated == {"zero_optimization": {"stage": 1}}
    assert additions == {"zero_optimization": {"sub_group_size": 5}}


def test_additions_come_from_the_command_line():
    """Dotted, as every other setting, and with its type."""
    key = "engine.deepspeed.zero_optimization.reduce_bucket_size"
    experiment = load_experiment(["demo"], overrides=[f"{key}=1000"])
    assert experiment.engine.deepspeed == {"zero_optimization": {"reduce_bucket_size": 1000}}
    with pytest.raises(UserError, match=r"engine\.deepspeed\.gradient_clipping"):
        load_experiment(["demo"], overrides=["engine.deepspeed.gradient_clipping=1"])
