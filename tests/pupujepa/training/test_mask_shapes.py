from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupujepa.randomness import generator
from pupujepa.training.mask_shapes import MAX_SHAPES, Grid, blocks, stripes
from pupujepa.training.masks import BLOCK, RANDOM, TIME_FREQUENCY, MaskConfig, draw_mask
from tests.pupujepa.reference_masks import fill, reference_blocks, reference_stripes

RELEASED = (256, 8)
HIDDEN = 1638  # of 2048
SHAPES = pytest.mark.parametrize(
    ("ours", "reference", "numbers"), [(blocks, reference_blocks, 5), (stripes, reference_stripes, 4)]
)


class Tape:
    """A generator that returns a table of numbers [numbers, MAX_SHAPES], all at once or shape by shape."""

    def __init__(self, table: np.ndarray):
        self.table = table
        self.ravelled = iter(table.T.ravel().tolist())

    def random(self, size: tuple[int, int]) -> np.ndarray:
        assert size == self.table.shape
        return self.table

    def __call__(self) -> float:
        return next(self.ravelled)


@SHAPES
@settings(max_examples=100, deadline=None)
@given(
    steps=st.integers(1, 300),
    bands=st.integers(1, 12),
    share=st.floats(0.02, 0.98),
    torus=st.booleans(),
    key=st.integers(0, 2**31),
)
def test_shapes_are_those_of_the_released_rules(ours, reference, numbers, steps, bands, share, torus, key):
    """From the same random numbers, sets of bits and a patch-by-patch loop cover exactly the same patches."""
    limit = max(1, round(share * steps * bands))
    tape = Tape(generator(key).random((numbers, MAX_SHAPES)))
    expected = reference(tape, steps, bands, limit=limit, torus=torus)
    covered = ours(tape, Grid(steps, bands, torus), limit)
    assert np.array_equal(covered.reshape(steps, bands), expected)
    assert np.count_nonzero(covered) <= limit


@SHAPES
def test_shapes_are_those_of_the_released_rules_on_the_released_grid(ours, reference, numbers):
    """The same at 256 x 8 and 1638 hidden patches, 300 times."""
    for key in range(300):
        tape = Tape(generator("released", key).random((numbers, MAX_SHAPES)))
        expected = reference(tape, *RELEASED, limit=HIDDEN)
        assert np.array_equal(ours(tape, Grid(*RELEASED), HIDDEN).reshape(RELEASED), expected)


@SHAPES
def test_on_a_torus_all_places_are_alike(ours, reference, numbers):
    """Moving every shape by the same number of steps and bands moves the mask, and changes nothing else.

    As starts are uniform over the torus, a patch is then hidden as often as any other, exactly.
    """
    for key, (steps, bands) in enumerate([(1, 0), (0, 1), (77, 3), (255, 7)]):
        table = generator("torus", key).random((numbers, MAX_SHAPES))
        moved = table.copy()
        moved[-2:] = (table[-2:] + np.array([[steps / 256], [bands / 8]])) % 1
        grid = Grid(*RELEASED, torus=True)
        here, there = (ours(Tape(t), grid, HIDDEN).reshape(RELEASED) for t in (table, moved))
        assert np.array_equal(np.roll(here, (steps, bands), axis=(0, 1)), there)


@cache
def drawn(strategy: int, draws: int, *, balanced: bool = False) -> np.ndarray:
    """Returns the hidden patches [draws, 256, 8] of masks on the released grid."""
    config = MaskConfig(balanced=balanced)
    hidden = np.ones((draws, 2048), dtype=bool)
    for row in range(draws):
        rng = generator("coverage", row)
        mask = draw_mask(rng, config, steps=256, bands=8, progress=1.0, strategy=strategy)
        hidden[row, mask.context] = False
    return hidden.reshape(draws, *RELEASED)


def deviation(ours: np.ndarray, reference: np.ndarray | float) -> float:
    """Returns the largest difference of hiding rates in standard errors, over patches, steps, bands.

    Args:
        reference: masks drawn by the design, or the rate of every patch that the design promises.
    """
    found = []
    for axes in ((), (1,), (2,)):
        rates, errors = [], []
        for masks in (ours, reference):
            if isinstance(masks, float):
                rates.append(np.float64(masks))
                continue
            of_draws = masks.mean(axis=axes) if axes else masks.astype(float)
            rates.append(of_draws.mean(0))
            errors.append(of_draws.var(0) / len(of_draws))
        found.append(float((np.abs(rates[0] - rates[1]) / np.sqrt(sum(errors) + 1e-12)).max()))
    return max(found)


@pytest.mark.parametrize(("strategy", "reference"), [(BLOCK, reference_blocks), (TIME_FREQUENCY, reference_stripes)])
def test_released_coverage(strategy, reference):
    """Every patch, step and band is hidden as often as by a plain reading of the rules with its own random numbers.

    Five standard errors over 2,312 rates pass a right design 999 times in 1,000. That they catch a wrong one is shown
    on the classical slip, an exclusive upper bound: shapes that never reach the last step and band.
    """
    rng = np.random.default_rng(7)
    by_design = np.stack([fill(reference(rng.random, *RELEASED, limit=HIDDEN), rng, limit=HIDDEN) for _ in range(500)])
    ours = drawn(strategy, 2000)
    assert deviation(ours, by_design) < 5
    slipped = np.zeros((200, *RELEASED), dtype=bool)
    for row in range(len(slipped)):
        slipped[row, :255, :7] = reference(rng.random, 255, 7, limit=HIDDEN)
        slipped[row] = fill(slipped[row], rng, limit=HIDDEN)
    assert deviation(ours, slipped) > 10


def test_released_shapes_starve_the_edges():
    """The rates in the documentation are right: first and last step, outer and middle bands."""
    by_step, by_band = (drawn(BLOCK, 2000).mean(axis=(0, axis)) for axis in (2, 1))
    assert by_step[[0, -1]] == pytest.approx([0.24, 0.24], abs=0.03)
    assert by_step[100:150].min() > 0.78
    assert by_band[[0, -1]] == pytest.approx([0.66, 0.66], abs=0.015)
    assert by_band[[3, 4]] == pytest.approx([0.89, 0.89], abs=0.015)
    by_step = drawn(TIME_FREQUENCY, 2000).mean(axis=(0, 2))
    assert by_step[[0, -1]] == pytest.approx([0.18, 0.18], abs=0.03)
    assert by_step[100:150].min() > 0.78


@pytest.mark.parametrize(
    ("strategy", "balanced"), [(RANDOM, False), (RANDOM, True), (BLOCK, True), (TIME_FREQUENCY, True)]
)
def test_random_and_balanced_masks_hide_all_patches_alike(strategy, balanced):
    """Every patch, step and band is hidden at the rate 1638 / 2048; the same measure rejects released block masks."""
    assert deviation(drawn(strategy, 2000, balanced=balanced), HIDDEN / 2048) < 5
    assert deviation(drawn(BLOCK, 2000), HIDDEN / 2048) > 10


def test_time_frequency_masks_are_mostly_time_masks():
    """On the released grid half of the masks hold a whole band (the release's, too); balanced ones nearly all do."""
    assert drawn(TIME_FREQUENCY, 2000).all(axis=1).any(axis=1).mean() == pytest.approx(0.5, abs=0.05)
    assert drawn(TIME_FREQUENCY, 2000, balanced=True).all(axis=1).any(axis=1).mean() > 0.95


def test_time_spans_cover_all_bands():
    """Most hidden patches of a time-frequency mask lie in fully hidden steps; of a random mask almost none do."""
    assert drawn(TIME_FREQUENCY, 2000).all(2).mean() > 0.6
    assert drawn(RANDOM, 2000).all(2).mean() == pytest.approx(0.8**8, abs=0.02)


@pytest.mark.parametrize("balanced", [False, True])
def test_block_masks_are_contiguous(balanced):
    """A hidden patch of a block mask has hidden neighbours far more often than chance."""

    def agreement(hidden: np.ndarray) -> float:
        along_time = hidden[:, 1:] == hidden[:, :-1]
        along_frequency = hidden[:, :, 1:] == hidden[:, :, :-1]
        return (along_time.mean() + along_frequency.mean()) / 2

    assert agreement(drawn(RANDOM, 2000)) == pytest.approx(0.8**2 + 0.2**2, abs=0.01)
    assert agreement(drawn(BLOCK, 2000, balanced=balanced)) > 0.85


def test_a_single_band_is_never_a_stripe():
    """On a grid of one band (a sequence of time steps) time-frequency masks are spans, balanced or not."""
    for torus in (False, True):
        covered = [stripes(generator(i), Grid(256, 1, torus), 205) for i in range(50)]
        assert min(np.count_nonzero(c) for c in covered) > 195
