"""Diagnostics on the probe set: is the model learning, or has it found a way to make the loss small for nothing?

Shapes: B crops, N patches, M target patches, D width, C clips, Q crops of a clip.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.engine import full_state
from distributed.probe_set import ProbeSet
from distributed.teacher import Teacher
from pupujepa import diagnostics
from pupujepa.errors import UserError
from pupujepa.masks import STRATEGIES
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep

# rows of a singular value decomposition; more change a rank estimate little and cost much
MAX_ROWS = 8192
CROPS_AT_ONCE = 16
PICTURED_CROPS = 6


@dataclass(frozen=True)
class DiagnosticsConfig:
    """every: steps between diagnostics, 0 never. clips, crops_per_clip: size of the probe set."""

    every: int = 1000
    clips: int = 24
    crops_per_clip: int = 4

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"diagnostics.every={self.every} must be 0 (never) or a number of steps")
        if self.clips < 2 or self.crops_per_clip < 1:
            raise UserError(
                f"diagnostics.clips={self.clips} must be at least 2, crops_per_clip={self.crops_per_clip} at least 1"
            )


@contextmanager
def whole_step(step: TrainingStep, model: PupuJEPA) -> Iterator[tuple[TrainingStep, PupuJEPA]]:
    """Yields the training step and the model with full weights; under stage 3 a copy of them, as long as it is needed.

    All ranks enter together.
    """
    if not any(hasattr(p, "ds_id") for p in step.parameters()):
        yield step, model
        return
    twin = whole_model(step, model).to(next(step.teacher.parameters()).device)
    yield TrainingStep(twin, step.objective, step.autocast_dtype), twin


def whole_model(step: TrainingStep, model: PupuJEPA) -> PupuJEPA:
    """Copies student, predictor and teacher into a model of its own on the CPU; all ranks call it together."""
    state = full_state(step)
    state |= {f"teacher.{name}": tensor for name, tensor in full_state(step.teacher).items()}
    with torch.device("meta"):
        copy = PupuJEPA(model.config, frontend=model.frontend)
    copy.load_state_dict(state, assign=True)
    copy.teacher.requires_grad_(False)
    return copy


@torch.no_grad()
def diagnose(step: TrainingStep, model: PupuJEPA, *, probes: ProbeSet, teacher: Teacher) -> dict[str, float]:
    """Returns the row of diagnostics, keys starting with "diag/"; all ranks call it together and get the same."""
    with whole_step(step, model) as (step, model):
        # a teacher in parts is gathered by all ranks, which so run the same crops
        together = any(not parameter.numel() for parameter in step.teacher.parameters())
        predictions = _in_parts(lambda part: _predict(step, probes, part), len(probes.mel_BTF), together=together)
        values = _prediction_values(*predictions, probes=probes, bands=model.config.grid_bands)
        for which in ("teacher", "student"):
            states = _in_parts(
                lambda part, which=which: _encode(step, model, probes.mel_BTF[part], which),  # type: ignore[misc]
                len(probes.mel_BTF),
                together=together,
            )
            values |= _feature_values(states[0], which=which, probes=probes, bands=model.config.grid_bands)
    row = {f"diag/{name}": float(value) for name, value in values.items()}
    distances = {"diag/teacher_student_distance": teacher.distance_to_student(), "diag/teacher_moved": teacher.moved()}
    return row | distances


@torch.no_grad()
def picture_data(
    step: TrainingStep, model: PupuJEPA, *, probes: ProbeSet, crops: int = PICTURED_CROPS
) -> dict[str, Tensor]:
    """Returns what pictures of this moment are drawn from, on the CPU; all ranks call it together.

    Returns:
        Of the first crops: mel_BTF, normalised, float16; context_BK, target_BM and strategy_B; error_BM, the squared
        error of each target token per dimension; teacher_BND, the teacher's features, float16.
    """
    part = slice(0, crops)
    with whole_step(step, model) as (step, model):
        prediction_BMD, target_BMD = _predict(step, probes, part)
        (teacher_BND,) = _encode(step, model, probes.mel_BTF[part], "teacher")
    tensors = {
        "mel_BTF": probes.mel_BTF[part].half(),
        "context_BK": probes.context_BK[part],
        "target_BM": probes.target_BM[part],
        "strategy_B": probes.strategy_B[part],
        "error_BM": (prediction_BMD - target_BMD).square().mean(-1),
        "teacher_BND": teacher_BND.half(),
    }
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _predict(step: TrainingStep, probes: ProbeSet, part: slice) -> tuple[Tensor, ...]:
    # past what was compiled for the shapes of training
    _, aux = step.forward(probes.mel_BTF[part], probes.context_BK[part], probes.target_BM[part])
    return aux["prediction_BMD"], aux["target_BMD"]


def _encode(step: TrainingStep, model: PupuJEPA, mel_BTF: Tensor, which: str) -> tuple[Tensor, ...]:
    dtype = step.autocast_dtype
    with torch.autocast(mel_BTF.device.type, dtype=dtype, enabled=dtype is not None):
        return (model.encode(mel_BTF, which=which, layers=[-1])[0].float(),)


def _in_parts(function: Callable[[slice], tuple[Tensor, ...]], count: int, *, together: bool) -> Sequence[Tensor]:
    """Runs the crops part by part, the parts dealt to the ranks, and returns all of them on every rank.

    Args:
        together: every rank runs every part.
    """
    parts = [slice(start, start + CROPS_AT_ONCE) for start in range(0, count, CROPS_AT_ONCE)]
    if together or not dist.is_initialized() or dist.get_world_size() == 1:
        outputs = [function(part) for part in parts]
    else:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        own = {number: function(parts[number]) for number in range(rank, len(parts), ranks)}
        outputs = [_from_rank(number % ranks, own.get(number)) for number in range(len(parts))]
    return [torch.cat(tensors) for tensors in zip(*outputs, strict=True)]


def _from_rank(source: int, tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Returns the tensors that rank `source` has, on every rank."""
    described: list[Any] = [[(t.shape, t.dtype, t.device.type) for t in tensors] if tensors is not None else None]
    dist.broadcast_object_list(described, src=source)
    if tensors is None:
        tensors = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in described[0])
    for tensor in tensors:
        dist.broadcast(tensor.contiguous() if source == dist.get_rank() else tensor, src=source)
    return tensors


def _prediction_values(
    prediction_BMD: Tensor, target_BMD: Tensor, *, probes: ProbeSet, bands: int
) -> dict[str, Tensor]:
    index_BM = probes.target_BM
    values = {
        "explained_variance": diagnostics.explained_variance(prediction_BMD, target_BMD),
        "explained_variance_position": diagnostics.explained_variance(
            prediction_BMD, target_BMD, index_BM, baseline=diagnostics.POSITION
        ),
    }
    for strategy, name in enumerate(STRATEGIES):
        rows = probes.strategy_B == strategy
        if rows.any():
            values[f"explained_variance_{name}"] = diagnostics.explained_variance(
                prediction_BMD[rows], target_BMD[rows]
            )
    per_band = diagnostics.explained_variance_per_band(prediction_BMD, target_BMD, index_BM, bands=bands)
    return values | {f"explained_variance_band_{band}": per_band[band] for band in range(bands)}


def _feature_values(states_BND: Tensor, *, which: str, probes: ProbeSet, bands: int) -> dict[str, Tensor]:
    tokens_nD = _thinned(states_BND, bands).flatten(0, 1)
    pooled_CQD = states_BND.mean(1).unflatten(0, (-1, probes.crops_per_clip))
    values = {
        f"effective_rank_{which}": diagnostics.effective_rank(tokens_nD),
        f"effective_rank_pooled_{which}": diagnostics.effective_rank(pooled_CQD.flatten(0, 1)),
        f"std_{which}": diagnostics.normalised_std(tokens_nD),
        f"cosine_{which}": diagnostics.mean_cosine(tokens_nD),
    }
    if which == "teacher" and probes.crops_per_clip > 1:
        between, within = diagnostics.between_within_variance(pooled_CQD)
        values |= {"clip_variance_between": between, "clip_variance_within": within}
        values["lidar"] = diagnostics.lidar(pooled_CQD)
    if which == "teacher":
        ranks = diagnostics.effective_rank_per_band(_thinned(states_BND, bands, rows=MAX_ROWS * 2), bands)
        values |= {f"effective_rank_band_{band}": ranks[band] for band in range(bands)}
    return values


def _thinned(states_BND: Tensor, bands: int, rows: int = MAX_ROWS) -> Tensor:
    """Keeps every n-th time step of every crop, whole, so that about `rows` tokens are left: [B, fewer, D]."""
    crops, tokens, _ = states_BND.shape
    stride = -(-crops * tokens // rows)
    grid_BTWD = states_BND.unflatten(1, (-1, bands))
    return grid_BTWD[:, ::stride].flatten(1, 2)
