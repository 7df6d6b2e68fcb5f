"""Masks: which patches the student sees and which the predictor must fill in.

Every mask is a pure function of a generator and the run's progress, and has the same number of context and target
patches, so tensor shapes never change. Upstream's vocabulary: H is the time axis, W the frequency axis.

- random: uniform patches.
- block: rectangles of 1-5 % of the grid, half of them long in time (aspect 2-5), half long in frequency (0.2-0.5).
- time_frequency: with P = H / (H + W) a span of 1-40 time steps over all bands, else one band over all time. On a
  grid of 256 x 8 that is time masking in practice: only half the masks hold any band. `balanced` draws both alike
  (ours).

Ours, where the released method is silent: spans are scaled with the grid when it is not 256 steps long; a shape that
would overshoot the count is passed over and the rest is filled at random; along time, shapes may hang over the edge
of the crop (which is an arbitrary cut through the music), so that the first and last steps are targets as often as
the others. Along frequency shapes stay inside, bounds inclusive.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pupujepa.errors import UserError

STRATEGIES = ("random", "block", "time_frequency")
RANDOM, BLOCK, TIME_FREQUENCY = range(3)

_MAX_SHAPES = 150
_BLOCK_AREA = (0.01, 0.05)
_BLOCK_ASPECT = (2.0, 5.0)
_MAX_SPAN = 40
_REFERENCE_STEPS = 256


@dataclass(frozen=True)
class MaskConfig:
    """How much is masked, and by which strategy.

    ratio: share of the patches that the student does not see.
    random, block, time_frequency: weights of the strategies after the warm-up; they are normalised.
    balanced: draw time spans and bands alike instead of with P = H / (H + W).
    warmup_start, warmup_end: fractions of the run; random only before, a linear move to the weights between.
    per_sample: draw the strategy for each sample rather than for each global batch.
    target_fraction: share of the masked patches that are predicted; fewer cost less.
    """

    ratio: float = 0.8
    random: float = 0.5
    block: float = 0.25
    time_frequency: float = 0.25
    balanced: bool = False
    warmup_start: float = 0.1
    warmup_end: float = 0.5
    per_sample: bool = True
    target_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"mask ratio={self.ratio} must lie between 0 and 1: both context and targets are needed")
        if min(self.random, self.block, self.time_frequency) < 0 or self.random + self.block + self.time_frequency <= 0:
            raise UserError(
                "the weights random, block and time_frequency must not be negative, and one must be positive"
            )
        if not 0 <= self.warmup_start <= self.warmup_end:
            raise UserError(
                f"mask warm-up from {self.warmup_start} to {self.warmup_end} runs backwards; "
                "both are fractions of the run"
            )
        if not 0 < self.target_fraction <= 1:
            raise UserError(f"target_fraction={self.target_fraction} must lie in (0, 1]")


class Mask(NamedTuple):
    """Token indices (step * bands + band), ascending, and the index of the strategy in STRATEGIES."""

    context: NDArray[np.int64]
    target: NDArray[np.int64]
    strategy: int


def num_context(config: MaskConfig, num_patches: int) -> int:
    """Returns how many patches the student sees, e.g. 410 of 2048, and at least one.

    Raises:
        UserError: the grid has fewer than two patches.
    """
    if num_patches < 2:
        raise UserError(f"a grid of {num_patches} patches cannot hold both context and targets")
    return min(max(round(num_patches * (1 - config.ratio)), 1), num_patches - 1)


def num_targets(config: MaskConfig, num_patches: int) -> int:
    """Returns how many patches are predicted, at least one."""
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
    return (1 - moved) * np.array([1.0, 0.0, 0.0]) + moved * weights / weights.sum()


def draw_strategy(rng: np.random.Generator, config: MaskConfig, *, progress: float) -> int:
    """Returns an index into STRATEGIES."""
    cumulative = np.cumsum(strategy_probabilities(progress, config))
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
        progress: in [0, 1] of the run, for the strategy's warm-up.
        strategy: set by a caller that draws one per batch; None draws it here.

    Returns:
        `num_context` context and `num_targets` target indices, disjoint, each in ascending order.
    """
    if strategy is None:
        strategy = draw_strategy(rng, config, progress=progress)
    num_patches = steps * bands
    num_masked = num_patches - num_context(config, num_patches)
    masked = np.zeros((steps, bands), dtype=bool)
    if strategy == BLOCK:
        _cover(masked, _blocks(rng, steps, bands), num_masked)
    elif strategy == TIME_FREQUENCY:
        _cover(masked, _stripes(rng, steps, bands, balanced=config.balanced), num_masked)
    flat = masked.ravel()
    free = np.flatnonzero(~flat)
    flat[rng.choice(free, num_masked - (num_patches - len(free)), replace=False, shuffle=False)] = True
    target = np.flatnonzero(flat)
    wanted = num_targets(config, num_patches)
    if wanted < len(target):
        target = np.sort(rng.choice(target, wanted, replace=False, shuffle=False))
    return Mask(np.flatnonzero(~flat), target, strategy)


def _cover(masked: NDArray[np.bool_], rectangles: NDArray[np.int64], limit: int) -> None:
    """Sets rectangles (top, bottom, left, right; ends exclusive) in turn, but not those that would exceed `limit`."""
    count = 0
    for top, bottom, left, right in rectangles.tolist():
        cells = masked[top:bottom, left:right]
        added = cells.size - int(np.count_nonzero(cells))
        if count + added <= limit:
            cells[...] = True
            count += added
            if count == limit:
                return


def _blocks(rng: np.random.Generator, steps: int, bands: int) -> NDArray[np.int64]:
    area = rng.uniform(*_BLOCK_AREA, _MAX_SHAPES) * steps * bands
    # log-uniform, so that the ranges 2-5 and 0.2-0.5 are each other's mirror image; drawn apart from the area
    aspect = np.exp(rng.uniform(math.log(_BLOCK_ASPECT[0]), math.log(_BLOCK_ASPECT[1]), _MAX_SHAPES))
    aspect = np.where(rng.random(_MAX_SHAPES) < 0.5, aspect, 1 / aspect)
    height = np.clip(np.rint(np.sqrt(area * aspect)), 1, steps).astype(np.int64)
    width = np.clip(np.rint(np.sqrt(area / aspect)), 1, bands).astype(np.int64)
    top, bottom = _place_over_edges(rng, height, steps)
    left = rng.integers(0, bands - width, endpoint=True)
    return np.stack([top, bottom, left, left + width], axis=1)


def _stripes(rng: np.random.Generator, steps: int, bands: int, *, balanced: bool) -> NDArray[np.int64]:
    along_time = rng.random(_MAX_SHAPES) < (0.5 if balanced else steps / (steps + bands))
    longest = max(1, round(_MAX_SPAN * steps / _REFERENCE_STEPS))
    top, bottom = _place_over_edges(rng, rng.integers(1, longest, _MAX_SHAPES, endpoint=True), steps)
    band = rng.integers(0, bands, _MAX_SHAPES)
    spans = np.stack([top, bottom, np.zeros_like(band), np.full_like(band, bands)], axis=1)
    lines = np.stack([np.zeros_like(band), np.full_like(band, steps), band, band + 1], axis=1)
    return np.where(along_time[:, None], spans, lines)


def _place_over_edges(
    rng: np.random.Generator, length: NDArray[np.int64], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns starts and ends of spans, uniform over all places that overlap the grid, cut to it."""
    start = rng.integers(1 - length, steps)
    return np.maximum(start, 0), np.minimum(start + length, steps)
