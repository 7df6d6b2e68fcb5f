"""Memory of a training step on one rank, by closed formulas: no model is built and nothing is traced.

ZeRO (arXiv 1910.02054) shards the optimiser's states over the ranks from stage 1 on, the gradients from 2, the
parameters at 3. All of them and the teacher are float32; bf16 is autocast. Activations are the tensors that autograd
keeps. Measured peaks are within 15 % (tests/distributed/test_measured_memory.py). Excluded are the device's context,
the communication library and fragmentation.
"""

from dataclasses import dataclass, fields, replace

import torch

from pupujepa.cost.cost import ParameterCounts, count_parameters
from pupujepa.model.architecture import MAE, SWIGLU, ModelConfig
from pupujepa.model.blocks import BlockShape
from pupujepa.model.model import encoder_shape, predictor_shape
from pupujepa.training.masks import MaskConfig, num_context, num_targets
from pupujepa.training.objective import FULL_GRID, ObjectiveConfig

ZERO_STAGES = (0, 1, 2, 3)
_FLOAT32 = 4
# upper limits, in bytes, of the weights that DeepSpeed's stage 3 holds gathered, and of its flat gather buffer
_LIVE, _PREFETCHED = 4_000_000_000, 200_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank by part; `buffers` are buckets, gathered weights, copies and temporaries."""

    parameters: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class StepConfig:
    """A training step on `crops` at once, and the engine's settings; `bucket` counts gradient entries."""

    model: ModelConfig
    masks: MaskConfig
    objective: ObjectiveConfig
    autocast_dtype: torch.dtype | None = None
    activation_checkpointing: bool = False
    crops: int = 1
    accumulates: bool = False
    zero_stage: int = 1
    ranks: int = 1
    bucket: int = 0
    offload_optimizer: bool = False
    shard_teacher: bool = False
    on_cpu: bool = False


def memory_per_rank(counts: ParameterCounts, *, zero_stage: int, ranks: int, activation_bytes: int) -> Memory:
    """Returns all parts except the buffers, for the rank that holds most."""
    own = -(-counts.trained // ranks)
    # from stage 1 on DeepSpeed keeps a float32 copy of the rank's shard, even of float32 parameters
    states = 3 * own if zero_stage >= 1 else 2 * counts.trained
    return Memory(
        parameters=_FLOAT32 * (own if zero_stage == 3 else counts.trained),
        gradients=_FLOAT32 * (own if zero_stage >= 2 else counts.trained),
        optimizer=_FLOAT32 * states,
        teacher=_FLOAT32 * counts.encoder,
        activations=activation_bytes,
    )


def peak_memory(step: StepConfig) -> tuple[str, Memory]:
    """Returns the moment of a step with the highest memory on a rank, and its parts."""
    stage, on_host, several = step.zero_stage, step.offload_optimizer, step.ranks > 1
    counts, alive = count_parameters(step.model), activations(step)
    held = memory_per_rank(counts, zero_stage=stage, ranks=step.ranks, activation_bytes=0)
    every, own = _FLOAT32 * counts.trained, -(-_FLOAT32 * counts.trained // step.ranks)
    # gradients are copied into a bucket one by one; at stage 1 only with an optimiser on the host
    in_bucket, bucket = stage >= 2 or on_host, min(_FLOAT32 * step.bucket, every)
    before, after = held.gradients * (step.accumulates or stage == 3), own if in_bucket else every
    of_predictor = before if in_bucket else max(before, _FLOAT32 * counts.predictor)
    of_all = before if in_bucket and bucket == every else max(before, before * (stage == 2) + after)
    gathered = (min(every, _LIVE) + min(every, _PREFETCHED)) * (stage == 3 and several) + bucket * in_bucket
    # two gathered blocks of a sharded teacher, the running and the next; the bucket exists by then only at stage 3
    ahead = 2 * held.teacher // step.model.depth * (step.shard_teacher and several) - bucket * (in_bucket and stage < 3)
    reducing = bucket * (in_bucket + (several or (not in_bucket and stage > 0)))
    # on a CPU AdamW is one kernel without temporaries, and gloo copies gathered tensors
    flat, temporary = own * (stage > 0), (own if stage else every) * (not step.on_cpu)
    updating = max((flat + temporary) * (not on_host), every * (step.on_cpu and several)) + bucket * (stage == 3)
    moments = {  # gradients, activations, buffers
        "forward": (before, alive["forward"], gathered + ahead),
        "backward": (before, alive["backward"], gathered),
        "backward, predictor done": (of_predictor, alive["predictor"], gathered),
        "backward, all done": (of_all, alive["student"], gathered),
        "update": (after, 0, max(reducing, updating)),
    }
    teacher = -(-held.teacher // (step.ranks if step.shard_teacher else 1))
    held = replace(held, teacher=teacher, optimizer=held.optimizer * (not on_host))
    parts = ("gradients", "activations", "buffers")
    peaks = {name: replace(held, **dict(zip(parts, sizes, strict=True))) for name, sizes in moments.items()}
    return max(peaks.items(), key=lambda peak: peak[1].total)


def activations(step: StepConfig) -> dict[str, int]:
    """Returns the bytes "kept" for the backward pass, and those alive at other moments, with temporaries."""
    model, recomputed, value = step.model, step.activation_checkpointing, 4 if step.autocast_dtype is None else 2
    context, targets = num_context(step.masks, model.num_patches), num_targets(step.masks, model.num_patches)
    sequence, seen = context + targets, model.num_patches if step.objective.target == FULL_GRID else targets
    encoder, predictor = encoder_shape(model), predictor_shape(model)
    copies = value * count_parameters(model).trained * (value < 4)
    # patches, the input of their norm and the tokens; the norm between student and predictor
    ends = model.num_patches * (value * model.patch_values + 8 * model.width) + context * (4 + value) * model.width
    # the predictor's final norm; prediction and target, with a temporary of the loss
    loss = targets * ((4 + value) * predictor.width + 12 * model.predictor_outputs)
    # a block without gradients holds its input, the residual, the norm's output and the MLP
    teacher = seen * ((12 + value) * encoder.width + value * _hidden(encoder)) * (model.predictor_objective != MAE)
    first = targets * value * (2 * predictor.width + _hidden(predictor))
    student, full = _block(encoder, context, context, value), _block(predictor, sequence, sequence, value)
    # recomputed blocks keep only their inputs, float32 in the student
    of_student = model.depth * (4 * encoder.width * context if recomputed else student)
    of_predictor = (model.predictor_depth - 1) * full + _block(predictor, sequence, targets, value)
    of_predictor = model.predictor_depth * value * predictor.width * sequence if recomputed else of_predictor
    kept = step.crops * (ends + of_student + of_predictor + loss) + copies * (not recomputed)
    # in its backward pass a block holds the gradients of its MLP besides its activations
    in_student = ends + student + context * value * _hidden(encoder)
    in_predictor = ends + of_student + full + sequence * value * _hidden(predictor)
    return {
        "kept": kept,
        "forward": kept + copies * recomputed + step.crops * max(teacher, first),
        "backward": kept + step.crops * first,
        "predictor": step.crops * in_predictor + copies // (model.depth if recomputed else 1),
        "student": step.crops * in_student + copies // model.depth,
    }


def _block(shape: BlockShape, tokens: int, wanted: int, value: int) -> int:
    """Returns the bytes that a block keeps."""
    # of all tokens the norm, qkv, and rotated queries and keys; of the wanted ones attention's output, norm and MLP
    attention = tokens * (4 + 6 * value) * shape.width
    return attention + wanted * ((4 + 2 * value) * shape.width + value * _hidden(shape))


def _hidden(shape: BlockShape) -> int:
    """Returns the values that an MLP keeps per token: gate, value, activation, product; GELU has two."""
    return (4 if shape.mlp == SWIGLU else 2) * shape.hidden
