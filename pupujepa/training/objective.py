"""Training step: predict the teacher's output at masked patches from the student's at visible ones.

The released target follows M2D: the teacher runs on the masked patches only, with the rotary angles of their original
positions, on the shared patch embedding without gradient. The batch fixes all shapes, and nothing waits for the device.
bf16 is autocast *inside* forward over float32 parameters, so the module behaves equally in a notebook and in an engine.

Two variants are other methods. With target="full_grid" the teacher sees the whole crop, and targets are its outputs at
masked positions, as in I-JEPA (arXiv 2301.08243) and A-JEPA: targets depend on their surroundings, and the teacher
runs on all patches. With kind="mae" the predictor reconstructs the patch itself, as in AudioMAE (arXiv 2207.06405), and
no teacher runs in the step. The trainer still averages the student, so that teacher and student can both be probed.

Shapes: B batch, T frames, F mel bands, N patches, K context patches, M target patches, D width, V values per target
token: D for "jepa", those of a patch for "mae".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pupujepa.errors import UserError, require_known
from pupujepa.model.architecture import JEPA, MAE, OBJECTIVES, ModelConfig
from pupujepa.model.blocks import NORM_EPSILON, Transformer
from pupujepa.model.model import (
    PupuJEPA,
    encoder_rotation,
    gather_tokens,
    patch_values,
    predictor_rotation,
    steps_of,
    visible_to,
)
from pupujepa.model.rope import Rotation

LOSSES = ("smooth_l1", "mse", "l1", "cosine", "norm_mse")
MASKED, FULL_GRID = TARGETS = ("masked", "full_grid")
STUDENT, PREDICTION = VARIANCE_OF = ("student", "prediction")
_VARIANCE_EPSILON = 1e-4  # of VICReg, under the square root


@dataclass(frozen=True)
class ObjectiveConfig:
    """Targets and loss. None of it is published; smooth-L1 at beta 1 is our `paper` recipe.

    kind: "jepa" predicts the teacher's features; "mae" the patch itself (AudioMAE, which uses loss=mse).
    target: "masked", the teacher sees the masked patches only (M2D, released); "full_grid", it sees the whole crop.
    loss, beta: see `token_losses`.
    target_layers: 1 uses the teacher's normed output; k > 1 the mean of its last k blocks' outputs, each normed
        without affine parameters (data2vec).
    standardise: normalise each target token to zero mean and unit variance over its values; for "mae" these are MAE's
        per-patch normalised pixels.
    variance_weight: weight of a hinge on the std of `variance_of` below `variance_floor`; 0 disables it.
    variance_of: "student", its output at the context, or "prediction".

    Raises:
        UserError: an unknown name, a number out of its range, or a choice that kind="mae" does not support.
    """

    loss: str = "smooth_l1"
    beta: float = 1.0
    target_layers: int = 1
    standardise: bool = True
    kind: str = JEPA
    target: str = MASKED
    variance_weight: float = 0.0
    variance_of: str = STUDENT
    variance_floor: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (
            ("loss", LOSSES),
            ("kind", OBJECTIVES),
            ("target", TARGETS),
            ("variance_of", VARIANCE_OF),
        ):
            require_known(name, getattr(self, name), known)
        if not self.beta > 0:
            raise UserError(f"beta={self.beta} must be positive: there smooth-L1 changes from square to linear")
        if self.target_layers < 1:
            raise UserError(f"target_layers={self.target_layers} must be at least 1")
        if self.variance_weight < 0 or not self.variance_floor > 0:
            raise UserError(
                f"variance_weight={self.variance_weight} must not be negative and "
                f"variance_floor={self.variance_floor} must be positive"
            )
        if self.kind == MAE:
            _check_mae(self)


class TrainingStep(nn.Module):
    """A module that computes the loss of a masked batch.

    `patch_embed`, `student` and `predictor` are submodules under their released names. The teacher is not: an engine
    must not shard, cast or clip it with "the parameters of the module". nn.Module does not search tuples, so `.to()`
    and `.state_dict()` do not reach it either, and the owner of the run moves and saves `step.teacher`.

    Args:
        autocast_dtype: torch.bfloat16, or None to compute in the parameters' dtype.
        activation_checkpointing: recompute the blocks of student and predictor in the backward pass.

    Raises:
        UserError: the objective does not fit the model, or float16.
    """

    def __init__(
        self,
        model: PupuJEPA,
        objective: ObjectiveConfig,
        autocast_dtype: torch.dtype | None = None,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_objective(objective, model.config)
        if autocast_dtype == torch.float16:
            raise UserError("float16 needs a gradient scaler, which this step does not have; use bfloat16 or None")
        self.config = model.config
        self.objective = objective
        self.autocast_dtype = autocast_dtype
        self.patch_embed = model.patch_embed
        self.student = model.student
        self.predictor = model.predictor
        self.student.activation_checkpointing = activation_checkpointing
        self.predictor.activation_checkpointing = activation_checkpointing
        self._outside_parameters = (model.teacher,)  # nn.Module does not register the content of a tuple

    @property
    def teacher(self) -> Transformer:
        """The teacher, float32, outside `parameters()`."""
        return self._outside_parameters[0]

    def forward(self, mel_BTF: Tensor, context_BK: Tensor, target_BM: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar loss and detached tensors for logging.

        Args:
            mel_BTF: normalised log-mel [B, T, F], float32.
            context_BK: int64 token indices that the student sees.
            target_BM: int64 token indices to predict, disjoint from the context.

        Returns:
            The loss, and {"prediction_BMD", "target_BMD", "per_sample_loss_B"}, all float32; for "mae" the first two
            hold V values per token instead of D.
        """
        steps = steps_of(mel_BTF, self.config)
        with torch.autocast(mel_BTF.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            tokens_BND = self.patch_embed(mel_BTF)
            rotation = encoder_rotation(self.config, steps, mel_BTF.device)
            context_BKD = self.student(*visible_to(self.student, tokens_BND, context_BK, rotation))
            sequence_BN = torch.cat([context_BK, target_BM], dim=1)
            prediction_BMV = self.predictor(
                context_BKD, sequence_BN, predictor_rotation(self.config, steps, sequence_BN)
            )
            if self.objective.kind == MAE:
                target_BMV = self.patches(mel_BTF, target_BM)
            else:
                # detached: the patch embedding must not learn to make targets easy
                target_BMV = self.targets(tokens_BND.detach(), target_BM, rotation)
        with torch.autocast(mel_BTF.device.type, enabled=False):  # losses in float32, under an outer autocast too
            prediction_BMV = prediction_BMV.float()
            loss_B = self.losses(prediction_BMV, target_BMV, context_BKD)
        aux = {
            "prediction_BMD": prediction_BMV.detach(),
            "target_BMD": target_BMV,
            "per_sample_loss_B": loss_B.detach(),
        }
        return loss_B.mean(), aux

    @torch.no_grad()
    def targets(self, tokens_BND: Tensor, target_BM: Tensor, rotation: Rotation | None) -> Tensor:
        """Returns the teacher's outputs at the target patches, standardised if configured: [B, M, D].

        Args:
            tokens_BND: of the whole grid, without gradient.
            rotation: of the whole grid.
        """
        if self.objective.target == FULL_GRID:
            outputs = [
                gather_tokens(output, target_BM) for output in self._teach(self.teacher.placed(tokens_BND), rotation)
            ]
        else:
            outputs = self._teach(*visible_to(self.teacher, tokens_BND, target_BM, rotation))
        if len(outputs) == 1:
            target_BMD = outputs[0].float()
        else:
            target_BMD = torch.stack([standardise(output) for output in outputs]).mean(0)  # so layers weigh equally
        return standardise(target_BMD) if self.objective.standardise else target_BMD

    @torch.no_grad()
    def patches(self, mel_BTF: Tensor, target_BM: Tensor) -> Tensor:
        """Returns the values of the target patches, standardised if configured: [B, M, V], float32."""
        target_BMV = gather_tokens(patch_values(mel_BTF.float(), self.config), target_BM)
        return standardise(target_BMV) if self.objective.standardise else target_BMV

    def losses(self, prediction_BMV: Tensor, target_BMV: Tensor, context_BKD: Tensor) -> Tensor:
        """Returns the loss of each crop [B], with the variance hinge if configured."""
        objective = self.objective
        loss_B = token_losses(prediction_BMV, target_BMV, loss=objective.loss, beta=objective.beta).mean(1)
        if not objective.variance_weight:
            return loss_B
        regularised = context_BKD.float() if objective.variance_of == STUDENT else prediction_BMV
        return loss_B + objective.variance_weight * variance_hinge(regularised, floor=objective.variance_floor)

    def _teach(self, x_BND: Tensor, rotation: Rotation | None) -> list[Tensor]:
        """Returns the teacher's normed output, or the outputs of its last blocks."""
        if self.objective.target_layers == 1:
            return [self.teacher(x_BND, rotation)]
        return self.teacher.top_outputs(x_BND, rotation, top=self.objective.target_layers)


def standardise(x_BMV: Tensor) -> Tensor:
    """Normalises each token to zero mean and unit variance over its values, in float32: [B, M, V]."""
    return functional.layer_norm(x_BMV.float(), x_BMV.shape[-1:], eps=NORM_EPSILON)  # without affine parameters


def token_losses(prediction_BMV: Tensor, target_BMV: Tensor, *, loss: str, beta: float = 1.0) -> Tensor:
    """Returns the loss [B, M] of each token; the three elementwise losses average over its values.

    Args:
        loss: one of LOSSES. cosine = 1 - cos; norm_mse = 2 - 2 cos, the loss of M2D.
        beta: error at which smooth-L1 changes from square to linear.
    """
    match loss:
        case "smooth_l1":
            return functional.smooth_l1_loss(prediction_BMV, target_BMV, reduction="none", beta=beta).mean(-1)
        case "mse":
            return (prediction_BMV - target_BMV).square().mean(-1)
        case "l1":
            return (prediction_BMV - target_BMV).abs().mean(-1)
        case "cosine":
            return 1 - functional.cosine_similarity(prediction_BMV, target_BMV, dim=-1)
        case "norm_mse":
            return 2 - 2 * functional.cosine_similarity(prediction_BMV, target_BMV, dim=-1)
    raise AssertionError(f"ObjectiveConfig allows no loss {loss!r}")


def variance_hinge(x_BNV: Tensor, *, floor: float) -> Tensor:
    """Returns max(0, floor - std over a crop's tokens), averaged over the values: [B].

    It is the variance term of VICReg (arXiv 2105.04906, eq. 1: gamma = floor), but per crop instead of per batch. So a
    crop's loss does not depend on the rest of its micro-batch, and equal tokens in a crop cost even if crops differ.
    """
    std_BV = (x_BNV.var(1, correction=0) + _VARIANCE_EPSILON).sqrt()
    return functional.relu(floor - std_BV).mean(-1)


def check_objective(objective: ObjectiveConfig, config: ModelConfig) -> None:
    """Raises UserError unless the objective fits the model."""
    if objective.target_layers > config.depth:
        raise UserError(
            f"objective.target_layers={objective.target_layers} exceeds the teacher's {config.depth} blocks "
            f"(model.depth); lower it"
        )
    if objective.kind != config.predictor_objective:
        raise UserError(
            f"objective.kind={objective.kind} does not fit model.predictor_objective={config.predictor_objective}, "
            f"whose predictor has {config.predictor_outputs} outputs per token; set objective.kind alone, the model "
            f"follows it"
        )


def _check_mae(objective: ObjectiveConfig) -> None:
    if objective.target_layers != 1 or objective.target != MASKED:
        raise UserError(
            f"kind=mae asks no teacher, so target_layers={objective.target_layers} and target={objective.target} have "
            f"no effect; leave them at 1 and {MASKED}, or use kind=jepa"
        )
    if objective.variance_of == PREDICTION:
        raise UserError(
            "kind=mae predicts patches, whose variance is that of the music, so variance_of=prediction is "
            "meaningless; use variance_of=student"
        )


def teacher_pairs(model: PupuJEPA | TrainingStep) -> list[tuple[str, Tensor, Tensor]]:
    """Returns (name, teacher parameter, student parameter) in one order, for the EMA update.

    Names are relative to the stack, such as `blocks.0.attn.qkv.weight`; the parameters of a pair have one shape [...].
    """
    students: Mapping[str, Tensor] = dict(model.student.named_parameters())
    return [(name, parameter, students[name]) for name, parameter in model.teacher.named_parameters()]
