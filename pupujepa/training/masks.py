"""Masks: the patches that the student sees, and those that the predictor must fill in.

A mask is a pure function of a generator and the run's progress. All have the same number of context and target
patches, so tensor shapes are constant. Upstream's vocabulary: H is the time axis, W the frequency axis.

- random: uniform patches.
- block: rectangles of 1-5 % of the grid, half of them long in time (aspect 2-5), half long in frequency (0.2-0.5).
- time_frequency: with P = H / (H + W) a span of 1-40 time steps over all bands, else one band over all time. On a
  grid of 256 x 8 this is mostly time masking: only half of the masks hold any band.

In a sequence (`structure` other than 2d) there are no rectangles: block and time_frequency are spans of tokens, as many
as a rectangle or a time span holds.

`mask_shapes` explains the rules of the shapes and their effect at the edges of the grid; the missing patches are drawn
at random. The release keeps 409 patches of 2048 in random masks and 410 in the others; here all keep 410. `balanced` is
ours: shapes on a torus, so that block and time_frequency hide every patch equally often, as random always does.

The strategies' probabilities move over the run from a single strategy to the configured weights. The release starts
with random and moves linearly; A-JEPA's curriculum starts with block and moves early.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pupujepa.errors import UserError, require_known
from pupujepa.model.architecture import FLAT_BY_BAND, STRUCTURES, TWO_DIMENSIONAL, is_sequence
from pupujepa.training.mask_shapes import Grid, blocks, stripes

STRATEGIES = ("random", "block", "time_frequency")
RANDOM, BLOCK, TIME_FREQUENCY = range(3)
CURVES = ("linear", "root")


@dataclass(frozen=True)
class MaskConfig:
    """Mask ratio and strategies.

    ratio: share of the patches that the student does not see.
    random, block, time_frequency: weights of the strategies after the warm-up; they are normalised.
    balanced: lay shapes on a torus, with spans and bands equally likely, so that all patches are hidden equally often.
    warmup_start, warmup_end: fractions of the run: `warmup_from` alone before, the configured weights after.
    warmup_from: the strategy at the start of a run.
    warmup_curve: "linear", or "root", the square root of the progress, which moves early.
    per_sample: draw the strategy per sample instead of per global batch.
    target_fraction: share of the masked patches to predict; fewer cost less.
    structure: of the tokens, as in ModelConfig. An experiment copies it from model.structure.

    Raises:
        UserError: a share, a weight or a fraction out of its range, or an unknown name.
    """

    ratio: float = 0.8
    random: float = 0.5
    block: float = 0.25
    time_frequency: float = 0.25
    balanced: bool = False
    warmup_start: float = 0.1
    warmup_end: float = 0.5
    warmup_from: str = "random"
    warmup_curve: str = "linear"
    per_sample: bool = True
    target_fraction: float = 1.0
    structure: str = TWO_DIMENSIONAL

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"mask ratio={self.ratio} must be between 0 and 1: both context and targets are needed")
        if min(self.random, self.block, self.time_frequency) < 0 or self.random + self.block + self.time_frequency <= 0:
            raise UserError(
                "the weights random, block and time_frequency must not be negative, and one must be positive"
            )
        if not 0 <= self.warmup_start <= self.warmup_end:
            raise UserError(
                f"mask warm-up from {self.warmup_start} to {self.warmup_end} runs backwards; "
                "both are fractions of the run"
            )
        require_known("warmup_from", self.warmup_from, STRATEGIES)
        require_known("warmup_curve", self.warmup_curve, CURVES)
        require_known("structure", self.structure, STRUCTURES)
        if not 0 < self.target_fraction <= 1:
            raise UserError(f"target_fraction={self.target_fraction} must be in (0, 1]")


class Mask(NamedTuple):
    """Ascending token indices of context [K] and target [M], and the index in STRATEGIES."""

    context: NDArray[np.int64]
    target: NDArray[np.int64]
    strategy: int


def num_context(config: MaskConfig, num_patches: int) -> int:
    """Returns the number of patches that the student sees, e.g. 410 of 2048; at least one.

    Raises:
        UserError: the grid has fewer than two patches.
    """
    if num_patches < 2:
        raise UserError(f"a grid of {num_patches} patches cannot hold both context and targets")
    return min(max(round(num_patches * (1 - config.ratio)), 1), num_patches - 1)  # at least one target, too


def num_targets(config: MaskConfig, num_patches: int) -> int:
    """Returns the number of patches to predict, at least one."""
    return max(round(config.target_fraction * (num_patches - num_context(config, num_patches))), 1)


def strategy_probabilities(progress: float, config: MaskConfig) -> NDArray[np.float64]:
    """Returns the probabilities [3] of STRATEGIES at `progress` in [0, 1] of the run."""
    weights = np.array([config.random, config.block, config.time_frequency])
    if progress < config.warmup_start:
        moved = 0.0
    elif progress >= config.warmup_end:
        moved = 1.0
    else:
        moved = (progress - config.warmup_start) / (config.warmup_end - config.warmup_start)
    if config.warmup_curve == "root":
        moved = math.sqrt(moved)
    start = np.eye(len(STRATEGIES))[STRATEGIES.index(config.warmup_from)]
    return (1 - moved) * start + moved * weights / weights.sum()


def draw_strategy(rng: np.random.Generator, config: MaskConfig, *, progress: float) -> int:
    """Returns an index into STRATEGIES."""
    cumulative = np.cumsum(strategy_probabilities(progress, config))
    # rounding can leave the last sum next to 1, hence the factor, and round the product up to it, hence the minimum
    return min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")), TIME_FREQUENCY)


def draw_mask(
    rng: np.random.Generator,
    config: MaskConfig,
    *,
    steps: int,
    bands: int,
    progress: float,
    strategy: int | None = None,
) -> Mask:
    """Draws a mask over a grid of steps x bands.

    Args:
        progress: of the run, in [0, 1], for the strategy's warm-up.
        strategy: from a caller that draws one per batch; None draws it here.

    Returns:
        `num_context` context and `num_targets` target indices, disjoint, each in ascending order.
    """
    if strategy is None:
        strategy = draw_strategy(rng, config, progress=progress)
    num_patches = steps * bands
    num_masked = num_patches - num_context(config, num_patches)
    shape = (num_patches, 1) if is_sequence(config.structure) else (steps, bands)
    grid = Grid(*shape, torus=config.balanced)
    if strategy == BLOCK:
        masked = blocks(rng, grid, num_masked)
    elif strategy == TIME_FREQUENCY:
        masked = stripes(rng, grid, num_masked)
    else:
        masked = np.zeros(num_patches, dtype=bool)
    lacking = num_masked - int(np.count_nonzero(masked))  # shapes never cover too many
    if lacking:
        free = np.flatnonzero(~masked)
        masked[free[rng.choice(len(free), lacking, replace=False, shuffle=False)]] = True
    if config.structure == FLAT_BY_BAND:  # from places in the sequence to token indices, step by step
        masked = masked.reshape(bands, steps).T.reshape(-1)
    context, target = np.flatnonzero(~masked), np.flatnonzero(masked)
    return Mask(context, _subsample(rng, target, num_targets(config, num_patches)), strategy)


def _subsample(rng: np.random.Generator, target: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    if wanted == len(target):
        return target
    kept = np.zeros(len(target), dtype=bool)
    kept[rng.choice(len(target), wanted, replace=False, shuffle=False)] = True
    return target[kept]
