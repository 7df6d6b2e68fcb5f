"""What a model costs: parameters by module, and floating-point operations by arithmetic.

Matrix products only (a multiply and an add are two operations), which is also what torch's flop counter counts; the
backward pass is taken as twice the forward one.
"""

from dataclasses import dataclass

from pupujepa.masks import MaskConfig, num_context, num_targets
from pupujepa.model import ModelConfig

_BACKWARD_FACTOR = 2


@dataclass(frozen=True)
class TrainingCost:
    """Operations of one training crop: forward and backward, but forward only for the teacher."""

    patch_embed: int
    student: int
    teacher: int
    predictor: int

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return self.patch_embed + self.student + self.teacher + self.predictor


def forward_flops(width: int, depth: int, *, tokens: int, mlp_ratio: float) -> int:
    """Returns the operations of a stack of blocks: 2 per weight and token, and 4 N^2 D of attention."""
    hidden = round(mlp_ratio * width)
    weights = 4 * width * width + 3 * width * hidden
    return depth * (2 * weights * tokens + 4 * tokens * tokens * width)


def predictor_flops(config: ModelConfig, *, context: int, targets: int) -> int:
    """Returns the predictor's forward operations."""
    blocks = forward_flops(
        config.predictor_width, config.predictor_depth, tokens=context + targets, mlp_ratio=config.mlp_ratio
    )
    return blocks + 2 * config.width * config.predictor_width * (context + targets)


def training_cost(config: ModelConfig, masks: MaskConfig) -> TrainingCost:
    """Returns the operations of one training crop."""
    context, targets = num_context(masks, config.num_patches), num_targets(masks, config.num_patches)
    both_passes = 1 + _BACKWARD_FACTOR
    patch_weights = config.patch_frames * config.patch_bands * config.width
    shape = {"width": config.width, "depth": config.depth}
    return TrainingCost(
        # nothing flows back into the spectrogram, so the patch embedding has half a backward pass
        patch_embed=2 * 2 * patch_weights * config.num_patches,
        student=both_passes * forward_flops(**shape, tokens=context, mlp_ratio=config.mlp_ratio),
        teacher=forward_flops(**shape, tokens=targets, mlp_ratio=config.mlp_ratio),
        predictor=both_passes * predictor_flops(config, context=context, targets=targets),
    )


def inference_flops(config: ModelConfig) -> int:
    """Returns the operations of encoding one full crop."""
    patch = 2 * config.patch_frames * config.patch_bands * config.width * config.num_patches
    return patch + forward_flops(config.width, config.depth, tokens=config.num_patches, mlp_ratio=config.mlp_ratio)
