"""Cost of a model from its config or size: parameters by module, and floating-point operations.

Operations are those of matrix products (a multiply and an add are two), as in torch's flop counter; the backward pass
counts twice the forward one. Norms, rotations, position codes and the optimiser cost bandwidth and are excluded.
"""

from dataclasses import dataclass
from pathlib import Path

from pupujepa.config import compose
from pupujepa.model.architecture import GELU, LEARNED, MAE, ModelConfig
from pupujepa.model.blocks import BlockShape
from pupujepa.model.model import encoder_shape, predictor_shape
from pupujepa.training.masks import MaskConfig, num_context, num_targets
from pupujepa.training.objective import FULL_GRID, ObjectiveConfig

PRESETS = Path(__file__).parents[1] / "presets" / "model"
_BACKWARD_FACTOR = 2


@dataclass(frozen=True)
class TrainingCost:
    """Operations of one training crop: forward and backward, for the teacher forward only."""

    patch_embed: int
    student: int
    teacher: int
    predictor: int

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return self.patch_embed + self.student + self.teacher + self.predictor


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by module; `encoder` is the student, and the untrained teacher has as many."""

    patch_embed: int
    encoder: int
    predictor: int

    @property
    def trained(self) -> int:
        """Parameters that the optimiser updates."""
        return self.patch_embed + self.encoder + self.predictor


def size_names() -> list[str]:
    """Returns the names of the model presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def model_size(name: str) -> ModelConfig:
    """Returns the architecture of a preset such as "tiny".

    Raises:
        ConfigError: no such preset; the message suggests near names.
    """
    return compose(ModelConfig, presets=[PRESETS / f"{name}.yaml"])


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Returns the parameters of a model without building it."""
    width, predictor = config.width, config.predictor_width
    learned = config.num_patches if config.position_code == LEARNED else 0
    ends = predictor * (width + 1) + config.predictor_outputs * (predictor + 1)
    mask_token = predictor
    return ParameterCounts(
        patch_embed=width * (config.patch_values + 1) + 2 * width,  # convolution with biases, then the norm
        encoder=_stack_parameters(encoder_shape(config), config.depth) + learned * width,
        predictor=_stack_parameters(predictor_shape(config), config.predictor_depth)
        + ends
        + mask_token
        + learned * predictor,
    )


def forward_flops(shape: BlockShape, depth: int, *, tokens: int) -> int:
    """Returns the operations of a stack of blocks: 2 per weight and token, and 4 N^2 D of attention."""
    return depth * (2 * _block_weights(shape) * tokens + 4 * tokens * tokens * shape.width)


def predictor_flops(config: ModelConfig, *, context: int, targets: int) -> int:
    """Returns the predictor's forward operations; its last block computes the target tokens only."""
    shape, tokens = predictor_shape(config), context + targets
    qkv = 3 * shape.width * shape.width
    last_block = 2 * qkv * tokens + (2 * (_block_weights(shape) - qkv) + 4 * tokens * shape.width) * targets
    blocks = forward_flops(shape, config.predictor_depth - 1, tokens=tokens) + last_block
    ends = config.width * context + config.predictor_outputs * targets
    return blocks + 2 * config.predictor_width * ends


def training_cost(
    config: ModelConfig,
    masks: MaskConfig,
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008  (frozen)
) -> TrainingCost:
    """Returns the operations of one training crop; of the objective only `target` matters.

    A model whose predictor reconstructs patches runs no teacher.
    """
    context, targets = num_context(masks, config.num_patches), num_targets(masks, config.num_patches)
    seen_by_teacher = config.num_patches if objective.target == FULL_GRID else targets
    both_passes = 1 + _BACKWARD_FACTOR
    encoder = encoder_shape(config)
    return TrainingCost(
        # the spectrogram needs no gradient, so the patch embedding has half a backward pass
        patch_embed=2 * 2 * config.patch_values * config.width * config.num_patches,
        student=both_passes * forward_flops(encoder, config.depth, tokens=context),
        teacher=0
        if config.predictor_objective == MAE
        else forward_flops(encoder, config.depth, tokens=seen_by_teacher),
        predictor=both_passes * predictor_flops(config, context=context, targets=targets),
    )


def inference_flops(config: ModelConfig) -> int:
    """Returns the operations of encoding one full crop."""
    patch = 2 * config.patch_values * config.width * config.num_patches
    return patch + forward_flops(encoder_shape(config), config.depth, tokens=config.num_patches)


def _block_weights(shape: BlockShape) -> int:
    """Returns the number of entries of a block's matrices."""
    return 4 * shape.width * shape.width + _mlp_matrices(shape) * shape.width * shape.hidden


def _stack_parameters(shape: BlockShape, depth: int) -> int:
    """Returns the number of parameters of a stack of blocks and its final norm."""
    # fc1 of SwiGLU packs two hidden layers, that of GELU one
    mlp_biases = (_mlp_matrices(shape) - 1) * shape.hidden + shape.width
    norms = 4 * shape.width + (4 * shape.width // shape.heads if shape.qk_norm else 0)
    return depth * (_block_weights(shape) + 4 * shape.width + mlp_biases + norms) + 2 * shape.width


def _mlp_matrices(shape: BlockShape) -> int:
    return 2 if shape.mlp == GELU else 3
