"""The training step: predict the teacher's view of masked patches from the student's view of the visible ones.

The target follows M2D: the teacher runs on the masked patches only, with the rotary angles of their original
positions, on the shared patch embedding without gradient. Shapes are fixed by the batch, nothing waits for the
device, and bf16 runs by autocast *inside* forward over float32 parameters, so the module behaves alike in a notebook
and under an engine.

Shapes: B batch, T frames, F mel bands, N patches, K context patches, M target patches, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pupujepa.blocks import NORM_EPSILON, Transformer
from pupujepa.errors import UserError
from pupujepa.model import PupuJEPA, encoder_rotation, gather_tokens, predictor_rotation, steps_of
from pupujepa.rope import Rotation, select

LOSSES = ("smooth_l1", "mse", "l1", "cosine", "norm_mse")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted and how a miss is measured. None of it is published; smooth-L1 at beta 1 is our `paper` recipe.

    loss: smooth_l1, mse, l1; cosine = 1 - cos; norm_mse = 2 - 2 cos, the loss of M2D.
    target_layers: 1 takes the teacher's normed output; k > 1 the mean of its last k blocks' outputs, each normed
        without affine parameters (data2vec).
    standardise: normalise each target token to zero mean and unit variance over its width.
    """

    loss: str = "smooth_l1"
    beta: float = 1.0
    target_layers: int = 1
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UserError(f"loss={self.loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if not self.beta > 0:
            raise UserError(f"beta={self.beta} must be positive: it is where smooth-L1 turns from square to linear")
        if self.target_layers < 1:
            raise UserError(f"target_layers={self.target_layers} must be at least 1")


class TrainingStep(nn.Module):
    """Computes the loss of a masked batch.

    `patch_embed`, `student` and `predictor` are submodules under their released names. The teacher is not: it has no
    gradient, so an engine that shards, casts or clips "the parameters of the module" must not find it. It is held in a
    tuple, which nn.Module does not look into; therefore `.to()` and `.state_dict()` do not reach it either, and whoever
    owns the run moves and saves `step.teacher`.

    Args:
        autocast_dtype: torch.bfloat16, or None to compute in the parameters' dtype.
        activation_checkpointing: recompute the blocks of student and predictor in the backward pass.
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
        if objective.target_layers > model.config.depth:
            raise UserError(
                f"target_layers={objective.target_layers} exceeds the teacher's {model.config.depth} blocks; lower it"
            )
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
        self._outside_parameters = (model.teacher,)

    @property
    def teacher(self) -> Transformer:
        """The teacher, float32, outside `parameters()`."""
        return self._outside_parameters[0]

    def forward(self, mel_BTF: Tensor, context_BK: Tensor, target_BM: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar loss and detached tensors to look at.

        Args:
            mel_BTF: normalised log-mel, float32.
            context_BK: token indices the student sees, int64.
            target_BM: token indices to predict, int64, disjoint from the context.

        Returns:
            The loss, and {"prediction_BMD", "target_BMD", "per_sample_loss_B"}, all float32.
        """
        steps = steps_of(mel_BTF, self.config)
        with torch.autocast(mel_BTF.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            tokens_BND = self.patch_embed(mel_BTF)
            rotation = encoder_rotation(self.config, steps, mel_BTF.device)
            context_BKD = self.student(gather_tokens(tokens_BND, context_BK), select(rotation, context_BK))
            sequence_BN = torch.cat([context_BK, target_BM], dim=1)
            prediction_BMD = self.predictor(context_BKD, predictor_rotation(self.config, steps, sequence_BN))
            target_BMD = self.targets(gather_tokens(tokens_BND.detach(), target_BM), select(rotation, target_BM))
        with torch.autocast(mel_BTF.device.type, enabled=False):
            prediction_BMD = prediction_BMD.float()
            loss_B = token_losses(prediction_BMD, target_BMD, self.objective).mean(1)
        aux = {
            "prediction_BMD": prediction_BMD.detach(),
            "target_BMD": target_BMD,
            "per_sample_loss_B": loss_B.detach(),
        }
        return loss_B.mean(), aux

    @torch.no_grad()
    def targets(self, tokens_BMD: Tensor, rotation: Rotation) -> Tensor:
        """Returns what the teacher makes of the target tokens, standardised if so configured: [B, M, D], float32."""
        if self.objective.target_layers == 1:
            target_BMD = self.teacher(tokens_BMD, rotation).float()
        else:
            outputs = self.teacher.top_outputs(tokens_BMD, rotation, top=self.objective.target_layers)
            target_BMD = torch.stack([standardise(output) for output in outputs]).mean(0)
        return standardise(target_BMD) if self.objective.standardise else target_BMD


def standardise(x_BMD: Tensor) -> Tensor:
    """Normalises each token to zero mean and unit variance over its width, in float32."""
    return functional.layer_norm(x_BMD.float(), x_BMD.shape[-1:], eps=NORM_EPSILON)


def token_losses(prediction_BMD: Tensor, target_BMD: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Returns the loss [B, M] of each token, a mean over the width for the three elementwise losses."""
    match objective.loss:
        case "smooth_l1":
            loss = functional.smooth_l1_loss(prediction_BMD, target_BMD, reduction="none", beta=objective.beta)
            return loss.mean(-1)
        case "mse":
            return (prediction_BMD - target_BMD).square().mean(-1)
        case "l1":
            return (prediction_BMD - target_BMD).abs().mean(-1)
        case "cosine":
            return 1 - functional.cosine_similarity(prediction_BMD, target_BMD, dim=-1)
        case "norm_mse":
            return 2 - 2 * functional.cosine_similarity(prediction_BMD, target_BMD, dim=-1)
    raise AssertionError(f"ObjectiveConfig admits no loss {objective.loss!r}")


def teacher_pairs(model: PupuJEPA | TrainingStep) -> list[tuple[str, Tensor, Tensor]]:
    """Returns (name, teacher parameter, student parameter) in one order, for the EMA update.

    Names are those inside the stack, such as `blocks.0.attn.qkv.weight`.
    """
    students: Mapping[str, Tensor] = dict(model.student.named_parameters())
    return [(name, parameter, students[name]) for name, parameter in model.teacher.named_parameters()]
