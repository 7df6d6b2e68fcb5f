from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupujepa.errors import UserError
from pupujepa.masks import (
    BLOCK,
    RANDOM,
    STRATEGIES,
    TIME_FREQUENCY,
    MaskConfig,
    draw_mask,
    draw_strategy,
    num_context,
    num_targets,
    strategy_probabilities,
)
from pupujepa.randomness import generator

ALL_STRATEGIES = pytest.mark.parametrize("strategy", range(3), ids=STRATEGIES)


def coverage(config: MaskConfig, strategy: int, *, steps: int, bands: int, draws: int) -> np.ndarray:
    """Returns how often each cell [steps, bands] is masked."""
    counts = np.zeros(steps * bands)
    for draw in range(draws):
        mask = draw_mask(generator("coverage", draw), config, steps=steps, bands=bands, progress=1.0, strategy=strategy)
        counts[mask.target] += 1
    return (counts / draws).reshape(steps, bands)


def test_released_grid_keeps_410_tokens():
    """Of 2048 tokens 410 are context and 1638 targets."""
    assert num_context(MaskConfig(), 2048) == 410
    assert num_targets(MaskConfig(), 2048) == 1638
    assert num_targets(MaskConfig(target_fraction=0.5), 2048) == 819


@settings(max_examples=150, deadline=None)
@given(
    steps=st.integers(1, 64),
    bands=st.integers(1, 12),
    ratio=st.floats(0.05, 0.95),
    fraction=st.floats(0.05, 1.0),
    balanced=st.booleans(),
    strategy=st.integers(0, 2),
    key=st.integers(0, 2**31),
)
def test_counts_never_change(steps, bands, ratio, fraction, balanced, strategy, key):
    """On any grid every strategy gives exactly the promised counts, sorted, disjoint and inside the grid."""
    if steps * bands < 2:
        return
    config = MaskConfig(ratio=ratio, target_fraction=fraction, balanced=balanced)
    mask = draw_mask(generator(key), config, steps=steps, bands=bands, progress=0.7, strategy=strategy)
    assert len(mask.context) == num_context(config, steps * bands)
    assert len(mask.target) == num_targets(config, steps * bands)
    assert mask.context.dtype == mask.target.dtype == np.int64
    assert (np.diff(mask.context) > 0).all()
    assert (np.diff(mask.target) > 0).all()
    together = np.concatenate([mask.context, mask.target])
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < steps * bands
    assert mask.strategy == strategy


@ALL_STRATEGIES
def test_masks_are_a_pure_function_of_the_key(strategy):
    """The same key gives the same mask, another key another one."""
    arguments = {"steps": 64, "bands": 8, "progress": 1.0, "strategy": strategy}
    first, again = (draw_mask(generator(1, "uid"), MaskConfig(), **arguments) for _ in range(2))
    other = draw_mask(generator(2, "uid"), MaskConfig(), **arguments)
    assert np.array_equal(first.target, again.target)
    assert not np.array_equal(first.target, other.target)


def test_random_covers_every_cell_alike():
    """Each cell is masked with the mask ratio's probability: no deviation beyond five standard errors."""
    draws = 4000
    rate = coverage(MaskConfig(), RANDOM, steps=32, bands=8, draws=draws)
    share = 1 - num_context(MaskConfig(), 256) / 256
    assert np.abs(rate - share).max() < 5 * np.sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize(("strategy", "balanced"), [(BLOCK, False), (TIME_FREQUENCY, False), (TIME_FREQUENCY, True)])
@pytest.mark.parametrize(("steps", "bands"), [(64, 8), (256, 8)])
def test_no_cell_is_starved(strategy, balanced, steps, bands):
    """Structured masks reach every cell, the edges too, and treat a grid like its mirror image.

    Along time the first and last steps are masked as often as the middle ones; along frequency a block must fit inside,
    so the outer bands are masked less, but never less than half as often as the mask ratio says.
    """
    config = MaskConfig(balanced=balanced)
    draws = 1500
    rate = coverage(config, strategy, steps=steps, bands=bands, draws=draws)
    assert rate.mean() == pytest.approx(1 - num_context(config, steps * bands) / (steps * bands))
    error = 5 * 0.5 / np.sqrt(draws)  # of a single cell's rate, at its widest
    assert rate.min() > 0.4
    over_time = rate.mean(1)
    edges = np.concatenate([over_time[:2], over_time[-2:]])
    assert np.abs(edges - over_time.mean()).max() < error
    assert np.abs(rate - rate[::-1]).max() < 1.5 * error
    assert np.abs(rate - rate[:, ::-1]).max() < 1.5 * error
    if strategy == TIME_FREQUENCY:
        assert np.abs(rate - rate.mean()).max() < 1.2 * error


def rectangles_of(strategy: int, **config: bool) -> np.ndarray:
    """Returns the cells [draws, 256, 8] of masks so sparse that single shapes can be seen."""
    grids = []
    for draw in range(300):
        mask = draw_mask(
            generator("single", draw), MaskConfig(**config), steps=256, bands=8, progress=1.0, strategy=strategy
        )
        grid = np.zeros(2048, dtype=bool)
        grid[mask.target] = True
        grids.append(grid.reshape(256, 8))
    return np.stack(grids)


def test_time_frequency_masks_are_mostly_time_masks():
    """On the released grid about half of the masks hold a whole band; balanced ones nearly all do."""
    whole_band = rectangles_of(TIME_FREQUENCY).all(1).any(1).mean()
    assert 0.3 < whole_band < 0.6
    assert rectangles_of(TIME_FREQUENCY, balanced=True).all(1).any(1).mean() > 0.95


def test_time_spans_cover_all_bands():
    """Most masked cells of a time-frequency mask lie in fully masked steps; of a random mask almost none do."""
    structured = rectangles_of(TIME_FREQUENCY).all(2).mean()
    scattered = rectangles_of(RANDOM).all(2).mean()
    assert structured > 0.6
    assert scattered == pytest.approx(0.8**8, abs=0.02)


def test_block_masks_are_contiguous():
    """A masked cell of a block mask has masked neighbours far more often than chance."""

    def agreement(grids: np.ndarray) -> float:
        along_time = grids[:, 1:] == grids[:, :-1]
        along_frequency = grids[:, :, 1:] == grids[:, :, :-1]
        return (along_time.mean() + along_frequency.mean()) / 2

    assert agreement(rectangles_of(RANDOM)) == pytest.approx(0.8**2 + 0.2**2, abs=0.01)
    assert agreement(rectangles_of(BLOCK)) > 0.85


def test_warm_up_moves_from_random_to_the_weights():
    """Random only before warmup_start, linear between, the normalised weights from warmup_end on."""
    config = MaskConfig(random=2, block=1, time_frequency=1, warmup_start=0.1, warmup_end=0.5)
    np.testing.assert_allclose(strategy_probabilities(0.0, config), [1, 0, 0])
    np.testing.assert_allclose(strategy_probabilities(0.1, config), [1, 0, 0])
    np.testing.assert_allclose(strategy_probabilities(0.3, config), [0.75, 0.125, 0.125])
    np.testing.assert_allclose(strategy_probabilities(0.5, config), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(strategy_probabilities(1.0, config), [0.5, 0.25, 0.25])
    at_once = MaskConfig(random=0, block=0, time_frequency=1, warmup_start=0, warmup_end=0)
    np.testing.assert_allclose(strategy_probabilities(0.0, at_once), [0, 0, 1])


def test_strategies_are_drawn_as_often_as_configured():
    """Frequencies of drawn strategies match the probabilities within five standard errors."""
    config = MaskConfig()
    drawn = [draw_strategy(generator("strategy", i), config, progress=0.3) for i in range(4000)]
    expected = strategy_probabilities(0.3, config)
    rate = np.bincount(drawn, minlength=3) / len(drawn)
    assert (np.abs(rate - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn))).all()


def test_a_strategy_of_weight_zero_is_never_drawn():
    """Weights of 0 mean never."""
    config = MaskConfig(random=0, block=1, time_frequency=0, warmup_start=0, warmup_end=0)
    assert {draw_strategy(generator(i), config, progress=0.0) for i in range(500)} == {BLOCK}


@ALL_STRATEGIES
def test_masks_are_fast(strategy):
    """A mask of the released grid takes well under 2 ms of processor time, so loaders are never bound by it."""
    start = process_time()
    for i in range(200):
        draw_mask(generator(i), MaskConfig(), steps=256, bands=8, progress=1.0, strategy=strategy)
    assert (process_time() - start) / 200 < 2e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.0}, "mask ratio=1.0 must lie between 0 and 1"),
        ({"block": -0.1}, "must not be negative"),
        ({"random": 0, "block": 0, "time_frequency": 0}, "one must be positive"),
        ({"warmup_start": 0.6}, "mask warm-up from 0.6 to 0.5 runs backwards"),
        ({"target_fraction": 0.0}, r"target_fraction=0.0 must lie in \(0, 1\]"),
    ],
)
def test_impossible_masks_are_refused(change, message):
    """A mask config that cannot work is refused on construction."""
    with pytest.raises(UserError, match=message):
        MaskConfig(**change)


def test_a_single_patch_cannot_be_masked():
    """A grid of one patch has no context and targets."""
    with pytest.raises(UserError, match="a grid of 1 patches cannot hold both"):
        num_context(MaskConfig(), 1)
