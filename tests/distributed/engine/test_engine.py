"""The engine's plain parts: batch sizes, the generated JSON, parameter groups, gathering in buckets."""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from distributed.engine.engine import (
    BatchSizes,
    EngineConfig,
    OptimizerConfig,
    batch_sizes,
    deepspeed_json,
    parameter_groups,
    prepare_deepspeed,
    settle_kernels,
    start_engine,
)
from distributed.engine.gather import full_state, in_buckets
from distributed.processes.topology import Topology, process_group
from pupujepa.config import from_yaml, to_yaml
from pupujepa.cost.cost import model_size
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep

SMALL = ModelConfig(
    crop_frames=64, width=32, depth=2, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=1
)


def training_step():
    return TrainingStep(PupuJEPA(SMALL), ObjectiveConfig())


@given(st.integers(1, 4096), st.integers(0, 64), st.integers(1, 64))
def test_the_global_batch_never_changes(global_batch, micro_batch, world_size):
    """Whatever the ranks and the micro-batch, the three numbers multiply to the global batch, or it is refused."""
    try:
        sizes = batch_sizes(global_batch, micro_batch=micro_batch, world_size=world_size)
    except UserError:
        assume(False)
    assert sizes.micro_batch * sizes.accumulation * world_size == sizes.global_batch == global_batch


def test_batches_that_do_not_divide_are_refused_with_a_number_that_does():
    """The message names what to use instead."""
    assert batch_sizes(16, micro_batch=0, world_size=2) == BatchSizes(16, 8, 1)
    with pytest.raises(UserError, match="use 4"):
        batch_sizes(16, micro_batch=5, world_size=2)
    with pytest.raises(UserError, match="cannot be shared by 3 ranks"):
        batch_sizes(16, micro_batch=0, world_size=3)


def test_the_json_is_generated():
    """Batch sizes are those of the configuration, communication does not overlap, and no CPU optimiser is compiled."""
    engine, optimizer = EngineConfig(zero_stage=3), OptimizerConfig(clip_norm=1.5)
    config = deepspeed_json(engine, optimizer, BatchSizes(64, 8, 4), num_trained=5)
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 1.5
    assert config["zero_optimization"] == {"stage": 3, "overlap_comm": False, "reduce_bucket_size": 5}
    assert config["zero_force_ds_cpu_optimizer"] is False
    # bf16 is autocast inside the step: parameters, gradients and the teacher's source stay float32
    assert not {"bf16", "fp16", "torch_autocast"} & set(config)


@pytest.mark.parametrize(("stage", "on_host", "copied"), [(1, False, False), (1, True, True), (2, False, True)])
def test_stage_1_copies_no_gradients_into_a_bucket(stage, on_host, copied):
    """They are all there when they are reduced; where the host updates, DeepSpeed insists on the bucket."""
    engine = EngineConfig(zero_stage=stage, offload_optimizer=on_host)
    zero = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 8, 1), num_trained=5)["zero_optimization"]
    assert zero.get("contiguous_gradients", True) == copied


def test_the_bucket_of_gradients_is_as_large_as_the_model():
    """Up to 200 MB; and no parameter of any size is larger than that, which DeepSpeed would reduce by itself."""
    for size in ("demo", "tiny", "small", "base", "large", "huge", "giant"):
        with torch.device("meta"):
            model = PupuJEPA(model_size(size))
        entries = [p.numel() for p in model.parameters() if p.requires_grad]
        config = deepspeed_json(EngineConfig(), OptimizerConfig(), BatchSizes(8, 8, 1), num_trained=sum(entries))
        bucket = config["zero_optimization"]["reduce_bucket_size"]
        assert max(entries) <= bucket == min(sum(entries), 50_000_000)


def test_an_optimiser_on_the_host_is_asked_for_in_the_json():
    """Torch's own optimiser updates there; DeepSpeed may not insist on its own, which would have to be compiled."""
    engine = EngineConfig(zero_stage=2, offload_optimizer=True)
    config = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 8, 1), num_trained=5)
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"zero_stage": 3, "compile": "inductor"}, r"engine\.compile=none"),
        ({"zero_stage": 3, "compile": "inductor", "shard_teacher": False}, r"engine\.compile=none"),
        ({"shard_teacher": True, "compile": "aot_eager"}, r"a whole teacher"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, said):
    """Each message says which of them to change."""
    with pytest.raises(UserError, match=said):
        EngineConfig(**fields)


def test_the_teacher_is_cut_where_parameters_are():
    """Under stage 3 unless it is said otherwise, under the others only when asked for."""
    assert [EngineConfig(zero_stage=stage).teacher_is_sharded for stage in (1, 2, 3)] == [False, False, True]
    assert EngineConfig(zero_stage=1, shard_teacher=True).teacher_is_sharded
    assert not EngineConfig(zero_stage=3, shard_teacher=False).teacher_is_sharded


def test_the_configuration_of_an_older_run_still_means_what_it_did():
    """Without the newer keys: no offload, nothing compiled, nothing added, the teacher whole at its stage."""
    text = "zero_stage: 2\nprecision: bf16\nmicro_batch: 0\nactivation_checkpointing: false\ntimeout_s: 600.0\n"
    engine = from_yaml(EngineConfig, text)
    assert engine == EngineConfig(zero_stage=2, precision="bf16")
    assert from_yaml(EngineConfig, to_yaml(engine)) == engine
    added = EngineConfig(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}}, shard_teacher=False)
    assert from_yaml(EngineConfig, to_yaml(added)) == added


def test_what_deepspeed_itself_refuses_is_said_in_our_words(monkeypatch):
    """A value that its own checks do not take is the user's mistake, not a crash."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    prepare_deepspeed(os.environ, device=torch.device("cpu"))
    engine = EngineConfig(deepspeed={"zero_optimization": {"reduce_bucket_size": -1}})
    config = deepspeed_json(engine, OptimizerConfig(), BatchSizes(8, 8, 1), num_trained=5)
    with (
        process_group(Topology(), timeout_s=60, device=torch.device("cpu")),
        pytest.raises(UserError, match=r"correct engine\.deepspeed: .*\n.*reduce_bucket_size"),
    ):
        start_engine(training_step(), engine, OptimizerConfig(), ds_config=config)


@pytest.mark.parametrize(
    "field",
    [
        {"zero_stage": 0},
        {"zero_stage": 4},
        {"precision": "fp16"},
        {"micro_batch": -1},
        {"timeout_s": 0},
        {"compile": "eager"},
    ],
)
def test_impossible_engines_are_refused(field):
    """Each message names the key."""
    with pytest.raises(UserError, match=f"engine.{next(iter(field))}"):
        EngineConfig(**field)


def test_deepspeed_times_nothing():
    """Its timer of throughput waits for the device at the start of every micro-batch; no stage keeps it."""
    for stage in (1, 2, 3):
        config = deepspeed_json(EngineConfig(zero_stage=stage), OptimizerConfig(), BatchSizes(8, 8, 1), num_trained=5)
        assert config["timers"] == {"throughput": {"enabled": False}}


def test_kernels_of_a_fixed_order_are_asked_for_and_given_back():
    """With what cuBLAS reads for it, unless the user has said it already; and memory is not filled for nothing."""
    environ = {}
    try:
        settle_kernels(environ, EngineConfig(deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        settle_kernels(environ := {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, EngineConfig(deterministic=True))
        assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    finally:
        settle_kernels(environ, EngineConfig())
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_matrices_decay():
    """Biases, norms and the mask token do not decay; every trained parameter is in one group, the teacher in none."""
    step = training_step()
    names = {id(p): name for name, p in step.named_parameters()}
    decayed, plain = parameter_groups(step, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert sorted(names[id(p)] for group in (decayed, plain) for p in group["params"]) == sorted(names.values())
    plain_names = {names[id(p)] for p in plain["params"]}
    expected = {n for n in names.values() if n.endswith("bias") or "norm" in n or n == "predictor.mask_token"}
    assert plain_names == expected
    assert not any("teacher" in name for name in names.values())


def test_learned_positions_do_not_decay():
    """They are vectors that are added, although their table is a matrix."""
    model = PupuJEPA(replace(SMALL, position_code="learned"))
    decayed, plain = parameter_groups(TrainingStep(model, ObjectiveConfig()), 0.05)
    tables = {id(model.student.positions.position_table), id(model.predictor.positions.position_table)}
    assert tables <= {id(p) for p in plain["params"]}
    assert not tables & {id(p) for p in decayed["params"]}


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 200))
def test_buckets_cover_all_parameters_in_order(sizes, elements):
    """No parameter is left out or taken twice, and no bucket grows far beyond its size."""
    parameters = [torch.empty(size, device="meta") for size in sizes]
    buckets = list(in_buckets(parameters, elements))
    assert [i for bucket in buckets for i in range(len(sizes))[bucket]] == list(range(len(sizes)))
    for bucket in buckets:
        assert sum(sizes[bucket][:-1]) < elements


def test_the_full_state_is_a_copy():
    """What is read does not change when training goes on."""
    module = nn.Linear(3, 2)
    state = full_state(module)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        module.weight.zero_()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
