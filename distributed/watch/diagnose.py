"""Diagnostics on the fixed crops: is the model learning, or is the loss small without learning?

On the first crop of each clip run the training step (prediction, and the student's features of the context) and the
teacher over the whole crop, as in inference. On the other crops run only the teacher, for LiDAR and the variances
within clips. These are most of the work, and may be less frequent.

Shapes: B crops, N patches, K context patches, M target patches, D width, C clips, Q crops of a clip, n tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.engine.gather import whole_step
from distributed.engine.teacher import Teacher
from distributed.processes.collectives import from_first
from distributed.watch.fixed_crops import FixedCrops
from pupujepa.model.model import PupuJEPA
from pupujepa.training import diagnostics
from pupujepa.training.masks import STRATEGIES
from pupujepa.training.objective import TrainingStep

# most tokens of a singular value decomposition; more cost much and change the rank little
MAX_ROWS = 16384
# few, so that many ranks share the work
CROPS_AT_ONCE = 2
PICTURED_CROPS = 6


@torch.no_grad()
def diagnose(
    step: TrainingStep, model: PupuJEPA, *, crops: FixedCrops, teacher: Teacher, all_crops: bool = True
) -> dict[str, float]:
    """Returns the row of diagnostics, "diag/..."; all ranks call it together and get the same.

    `all_crops` includes the other crops of each clip, for LiDAR and the variances.
    """
    bands, masked_CTF, others = model.config.grid_bands, crops.masked_crops, crops.crops_per_clip - 1
    stride = stride_to_fit(len(masked_CTF) * model.config.num_patches)

    def teach(mel_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the teacher's features of every n-th step [B, fewer, D], and the mean of all [B, D]."""
        states_BND = _encode(step, model, mel_BTF)
        return states_BND.unflatten(1, (-1, bands))[:, ::stride].flatten(1, 2), states_BND.mean(1)

    with whole_step(step, model) as (step, model):
        # all ranks gather a sharded teacher together, so they must run the same crops
        in_parts = partial(_in_parts, together=any(not p.numel() for p in step.teacher.parameters()))
        prediction_CMD, target_CMD, context_CKD = in_parts(lambda part: _predict(step, crops, part), masked_CTF)
        states_CND, pooled_CD = in_parts(lambda part: teach(masked_CTF[part]), masked_CTF)
        pooled_CQD = pooled_CD[:, None]  # one crop a clip, unless the others follow
        if all_crops and others:
            other_BTF = crops.other_crops
            (other_BD,) = in_parts(lambda part: (_encode(step, model, other_BTF[part]).mean(1),), other_BTF)
            pooled_CQD = torch.cat([pooled_CQD, other_BD.unflatten(0, (-1, others))], dim=1)
    values = _prediction_values(prediction_CMD, target_CMD, crops=crops, bands=bands)
    kept_CKD = context_CKD[:, :: stride_to_fit(context_CKD.shape[:2].numel())]
    for which, tokens_CND, mean_CD in (("student", kept_CKD, context_CKD.mean(1)), ("teacher", states_CND, pooled_CD)):
        tokens_nD = tokens_CND.flatten(0, 1)
        values[f"effective_rank_{which}"] = diagnostics.effective_rank(tokens_nD)
        values[f"effective_rank_pooled_{which}"] = diagnostics.effective_rank(mean_CD)
        values[f"std_{which}"] = diagnostics.normalised_std(tokens_nD)
        values[f"cosine_{which}"] = diagnostics.mean_cosine(tokens_nD)
    ranks = diagnostics.effective_rank_per_band(states_CND, bands)
    values |= {f"effective_rank_band_{band}": ranks[band] for band in range(bands)}
    if pooled_CQD.shape[1] > 1:
        between, within = diagnostics.between_within_variance(pooled_CQD)
        values |= {"clip_variance_between": between, "clip_variance_within": within}
        values["lidar"] = diagnostics.lidar(pooled_CQD)
    row = {f"diag/{name}": float(value) for name, value in values.items()}
    distances = {"diag/teacher_student_distance": teacher.distance_to_student(), "diag/teacher_moved": teacher.moved()}
    return row | distances


@torch.no_grad()
def picture_data(step: TrainingStep, model: PupuJEPA, *, crops: FixedCrops) -> dict[str, Tensor]:
    """Returns the data for pictures of this moment, on the CPU; all ranks call it together.

    Returns:
        Of the first crops that have masks: mel_BTF, normalised, float16; context_BK, target_BM and strategy_B;
        error_BM, the squared error of each target token per dimension; teacher_BND, the teacher's features, float16.
    """
    part = slice(0, PICTURED_CROPS)
    with whole_step(step, model) as (step, model):
        prediction_BMD, target_BMD, _ = _predict(step, crops, part)
        teacher_BND = _encode(step, model, crops.masked_crops[part])
    tensors = {
        "mel_BTF": crops.masked_crops[part].half(),
        "context_BK": crops.context_CK[part],
        "target_BM": crops.target_CM[part],
        "strategy_B": crops.strategy_C[part],
        "error_BM": (prediction_BMD - target_BMD).square().mean(-1),
        "teacher_BND": teacher_BND.half(),
    }
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def stride_to_fit(tokens: int) -> int:
    """Returns n such that every n-th token leaves about MAX_ROWS."""
    return -(-tokens // MAX_ROWS)


def _predict(step: TrainingStep, crops: FixedCrops, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Returns prediction and target [C, M, D] of some clips, and the student's context [C, K, D]."""
    contexts: list[Tensor] = []
    with step.student.register_forward_hook(lambda module, inputs, output: contexts.append(output)):
        # `forward` bypasses the graph that was compiled for the shapes of training
        _, aux = step.forward(crops.masked_crops[part], crops.context_CK[part], crops.target_CM[part])
    return aux["prediction_BMD"], aux["target_BMD"], contexts[0].float()


def _encode(step: TrainingStep, model: PupuJEPA, mel_BTF: Tensor) -> Tensor:
    """Returns the teacher's features of whole crops, [B, N, D]."""
    dtype = step.autocast_dtype
    with torch.autocast(mel_BTF.device.type, dtype=dtype, enabled=dtype is not None):
        return model.encode(mel_BTF, layers=[-1])[0].float()


def _in_parts(function: Callable[[slice], tuple[Tensor, ...]], mel_BTF: Tensor, *, together: bool) -> Sequence[Tensor]:
    """Runs `function` on slices of the crops, distributed over the ranks; returns all rows on every rank.

    Args:
        function: returns tensors with a row for each crop of a slice.
        together: every rank runs every slice.
    """
    count = len(mel_BTF)
    parts = [slice(start, min(start + CROPS_AT_ONCE, count)) for start in range(0, count, CROPS_AT_ONCE)]
    if together or not dist.is_initialized() or dist.get_world_size() == 1:
        return [torch.cat(tensors) for tensors in zip(*map(function, parts), strict=True)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    own = {number: function(parts[number]) for number in range(rank, len(parts), ranks)}  # dealt in turn
    # rank 0 always has a slice, so it knows shapes and types
    described = from_first([(tensor.shape[1:], tensor.dtype) for tensor in own.get(0, ())])
    whole = [torch.empty(count, *shape, dtype=dtype, device=mel_BTF.device) for shape, dtype in described]
    for number, part in enumerate(parts):
        for index, tensor in enumerate(whole):
            if number in own:
                tensor[part] = own[number][index]
            dist.broadcast(tensor[part], src=number % ranks)  # in one order on all ranks, or they would hang
    return whole


def _prediction_values(
    prediction_CMD: Tensor, target_CMD: Tensor, *, crops: FixedCrops, bands: int
) -> dict[str, Tensor]:
    index_CM = crops.target_CM
    values = {
        "explained_variance": diagnostics.explained_variance(prediction_CMD, target_CMD),
        "explained_variance_position": diagnostics.explained_variance(
            prediction_CMD, target_CMD, index_CM, baseline=diagnostics.POSITION
        ),
    }
    for strategy, name in enumerate(STRATEGIES):
        rows = crops.strategy_C == strategy
        if rows.any():
            values[f"explained_variance_{name}"] = diagnostics.explained_variance(
                prediction_CMD[rows], target_CMD[rows]
            )
    per_band = diagnostics.explained_variance_per_band(prediction_CMD, target_CMD, index_CM, bands=bands)
    return values | {f"explained_variance_band_{band}": per_band[band] for band in range(bands)}
