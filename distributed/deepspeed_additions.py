"""What a user may add to DeepSpeed's JSON, checked against what this trainer relies on.

The JSON is generated. `engine.deepspeed.KEY=VALUE` adds to it what we have no setting for: sizes of buckets, timers,
profilers. An addition that would change what is written elsewhere in the experiment, or what the exactness of the
teacher, of resumed runs and of the parity between stages rests on, is refused with the reason. Others are passed on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pupujepa.errors import UserError

# why a key is not the user's, and the keys
_REASONS = {
    "batches are written once, so that stream and engine agree: set stream.global_batch and engine.micro_batch; "
    "accumulation follows from them and the number of ranks": """
        train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation""",
    "it is written once: set optimizer.clip_norm": "gradient_clipping",
    "it is AdamW on every device: set optimizer.*": """
        optimizer zero_allow_untested_optimizer zero_force_ds_cpu_optimizer""",
    "the learning rate is a pure function of the step, which a resumed run repeats: set schedule.*": "scheduler",
    "parameters, gradients and their sums stay float32: the teacher averages them, and all stages and worlds give the "
    "same losses; set engine.precision for the computation": """
        fp16 bf16 bfloat16 amp torch_autocast data_types communication_data_type seq_parallel_communication_data_type
        weight_quantization compression_training zero_optimization.zero_quantized_weights
        zero_optimization.zero_quantized_nontrainable_weights zero_optimization.zero_quantized_gradients""",
    "gradients are means over the global batch, whatever the number of ranks": """
        prescale_gradients gradient_predivide_factor gradient_allreduce_op sparse_gradients""",
    "set engine.zero_stage": "zero_optimization.stage",
    "set engine.offload_optimizer": "zero_optimization.offload_optimizer zero_optimization.cpu_offload",
    "teacher and checkpoints read parameters where they are trained; raise engine.zero_stage, or use "
    "engine.offload_optimizer and engine.activation_checkpointing": """
        zero_optimization.offload_param zero_optimization.cpu_offload_param
        zero_optimization.cpu_offload_use_pin_memory""",
    "it races with contiguous gradients, which gives NaN from the first step": "zero_optimization.overlap_comm",
    "the norm of the gradient is logged and guards against divergence": "zero_optimization.compute_grad_norm",
    "it changes how weights and optimiser lie in checkpoints, which are resharded by their layout": """
        zero_optimization.zero_hpz_partition_size zero_optimization.round_robin_gradients
        zero_optimization.parameter_alignment zero_optimization.elastic_checkpoint zero_optimization.legacy_stage1
        checkpoint elasticity datastates_ckpt nebula""",
    "it makes another training of this one, in which ranks, stages and resumed runs would no longer agree": """
        zero_optimization.zenflow data_efficiency curriculum_learning progressive_layer_drop eigenvalue
        sparse_attention quantize_training hybrid_engine expert_parallel tensor_parallel pipeline disable_allgather
        sequence_parallel_size use_data_before_expert_parallelism autotuning""",
    "set engine.activation_checkpointing; DeepSpeed's own would have no effect": "activation_checkpointing",
    "set engine.compile": "compile",
}
REFUSED = {key: reason for reason, keys in _REASONS.items() for key in keys.split()}


def check_additions(additions: Mapping[str, Any]) -> None:
    """Raises UserError for the first addition that contradicts what we rely on, with the reason."""
    for key in _leaves(additions):
        # zero_optimization.offload_optimizer.device is refused as zero_optimization.offload_optimizer is
        for prefix in _prefixes(key):
            if prefix in REFUSED:
                raise UserError(f"engine.deepspeed.{key} cannot be added to the generated JSON: {REFUSED[prefix]}")
    if not isinstance(additions.get("zero_optimization", {}), Mapping):
        raise UserError(
            f"engine.deepspeed.zero_optimization={additions['zero_optimization']!r} would replace what is generated; "
            f"add single keys, such as engine.deepspeed.zero_optimization.reduce_bucket_size=50000000"
        )


def with_additions(generated: Mapping[str, Any], additions: Mapping[str, Any]) -> dict[str, Any]:
    """Merges checked additions into the generated JSON, mapping by mapping."""
    merged = dict(generated)
    for key, value in additions.items():
        old = merged.get(key)
        merged[key] = with_additions(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _prefixes(key: str) -> Iterator[str]:
    words = key.split(".")
    for count in range(1, len(words) + 1):
        yield ".".join(words[:count])
