"""The 1-D twin of a 2-D model, and the factors in docs/control.md and the presets."""

from dataclasses import dataclass, replace

from pupujepa.cost.cost import training_cost
from pupujepa.errors import UserError
from pupujepa.model.architecture import FRAMES, ModelConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig


@dataclass(frozen=True)
class Match:
    """Ratios 2-D / 1-D of a 2-D model and its 1-D twin.

    tokens_per_crop: multiply the 1-D run's global batch by it to train on equally many tokens per step.
    flops_per_crop: multiply the 1-D run's steps by it to spend equally many operations on the whole run.
    """

    one_dimensional: ModelConfig
    tokens_per_crop: float
    flops_per_crop: float


def one_dimensional(config: ModelConfig, *, patch_frames: int | None = None) -> ModelConfig:
    """Returns the 1-D twin of a 2-D model.

    Args:
        patch_frames: of the twin's tokens; None keeps the time resolution.

    Raises:
        UserError: the model is 1-D already, or its crop cannot be cut into such tokens.
    """
    if config.structure == FRAMES:
        raise UserError("the model has structure=frames already; give the 2-D model whose control is wanted")
    frames = config.patch_frames if patch_frames is None else patch_frames
    return replace(config, structure=FRAMES, patch_bands=0, patch_frames=frames)


def match(
    config: ModelConfig,
    masks: MaskConfig = MaskConfig(),  # noqa: B008  (frozen)
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008  (frozen)
    *,
    patch_frames: int | None = None,
) -> Match:
    """Returns the 1-D twin of a 2-D model and the factors that make the two runs equal in tokens or operations."""
    twin = one_dimensional(config, patch_frames=patch_frames)
    flops = training_cost(config, masks, objective).total / training_cost(twin, masks, objective).total
    return Match(twin, config.num_patches / twin.num_patches, flops)
