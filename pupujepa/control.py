"""The controlled 1-D JEPA: what a run with model.structure=1d shares with its 2-D twin, what differs, and how to match.

The claim is that a JEPA gains by seeing music as a time-frequency grid. It can only be attributed to the grid by a twin
that differs in the grid alone. The twin's tokens are time steps that hold all 128 mel bands (patches of 4 x 128 instead
of 4 x 16); everything else is taken over:

- equal by construction: front end, crops, order of samples; encoder and predictor, parameter by parameter (Tiny
  7,117,440 and 33,822,912; Large 403,073,024 and 34,675,712); one EMA teacher on the masked tokens; loss, optimiser,
  schedules; 25 time steps per second; the mask ratio (the token budget rule: round(N / 5) tokens are seen, the others
  predicted, a number that never changes); the masking family, drawn by the same code on a grid with one band: random
  tokens, spans of 1 to 8 steps in place of blocks, the same spans of 1 to 40 steps over all bands. A stripe of one band
  would be the whole crop and is not drawn.
- different because it must be: the patch embedding maps 512 values to a token instead of 64 (448 D more parameters,
  Tiny 98,880 instead of 12,864, Large 527,360 instead of 68,608); rotary angles have one axis, so all pairs of a head
  turn with time, by head_dim / 2 frequencies over the range that head_dim / 4 cover in 2-D; the `frames` readout is D
  wide instead of 8 D. A probe on `frames` therefore has 8 times the weights in 2-D: compare `mean` (D wide in both), or
  say so.

One crop is 256 tokens instead of 2048 (51 context and 205 targets instead of 410 and 1638). So tokens, operations and
data cannot all be equal, and a comparison has to say which is:

    equal       how, Tiny                              how, Large                         then, Tiny / Large
    data        nothing to set                         nothing to set                     11.4 / 9.3 times fewer FLOPs
    tokens      stream.global_batch times 8            the same                           1.4 / 1.2 times fewer FLOPs
    operations  train.steps times 11.38                train.steps times 9.29             the data 11.4 / 9.3 times
    resolution  model.patch_frames=1 (1024 tokens      the same                           2.41 / 2.17 times fewer FLOPs,
                of 10 ms, 128 values each)                                                half the tokens

Steps are those of the 2-D run unless they are what is matched. None of the four is neutral: `data` gives 2-D more
operations, `operations` gives 1-D more data, a larger batch wants another learning rate, finer tokens lengthen the
sequence. The first two bracket the answer, so they are the ones to run. `match` gives the numbers for any size, and a
test holds this page to them.
"""

from dataclasses import dataclass, replace

from pupujepa.architecture import ONE_DIMENSIONAL, ModelConfig
from pupujepa.cost import training_cost
from pupujepa.errors import UserError
from pupujepa.masks import MaskConfig
from pupujepa.objective import ObjectiveConfig


@dataclass(frozen=True)
class Match:
    """How a 1-D twin relates to its 2-D model, as factors 2-D / 1-D.

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
    if config.structure == ONE_DIMENSIONAL:
        raise UserError("the model has structure=1d already; give the 2-D model whose control is wanted")
    frames = config.patch_frames if patch_frames is None else patch_frames
    return replace(config, structure=ONE_DIMENSIONAL, patch_bands=0, patch_frames=frames)


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
