from hashlib import sha256
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pupujepa.config import from_yaml
from pupujepa.errors import UserError
from pupujepa.randomness import generator
from pupujepa.training.masks import (
    BLOCK,
    STRATEGIES,
    MaskConfig,
    draw_mask,
    draw_strategy,
    num_context,
    num_targets,
    strategy_probabilities,
)

ALL_STRATEGIES = pytest.mark.parametrize("strategy", range(3), ids=STRATEGIES)


def test_released_grid_keeps_410_tokens():
    """Of 2048 tokens 410 are context and 1638 targets."""
    assert num_context(MaskConfig(), 2048) == 410
    assert num_targets(MaskConfig(), 2048) == 1638
    assert num_targets(MaskConfig(target_fraction=0.5), 2048) == 819


@ALL_STRATEGIES
@pytest.mark.parametrize("balanced", [False, True])
def test_every_mask_of_the_released_grid_keeps_410_tokens(strategy, balanced):
    """For every cover of the shapes, 410 tokens are context and the other 1638 are targets."""
    config = MaskConfig(balanced=balanced)
    for key in range(300):
        mask = draw_mask(generator("410", key), config, steps=256, bands=8, progress=1.0, strategy=strategy)
        assert (len(mask.context), len(mask.target)) == (410, 1638)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.integers(1, 300),
    bands=st.integers(1, 12),
    ratio=st.floats(0.01, 0.99),
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
    assert len(mask.context) == np.clip(round(steps * bands * (1 - ratio)), 1, steps * bands - 1)
    assert len(mask.target) == num_targets(config, steps * bands)
    assert mask.context.dtype == mask.target.dtype == np.int64
    assert (np.diff(mask.context) > 0).all()
    assert (np.diff(mask.target) > 0).all()
    together = np.concatenate([mask.context, mask.target])
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < steps * bands
    assert mask.strategy == strategy


def digest(config: MaskConfig, *, steps: int) -> str:
    """Returns the SHA-256 of twenty keyed masks and their strategies."""
    found = sha256()
    for key in range(20):
        rng = generator(key, 0, f"uid-{key}", 1, "mask")
        mask = draw_mask(rng, config, steps=steps, bands=8, progress=key / 20)
        found.update(mask.context.astype("<i8").tobytes() + mask.target.astype("<i8").tobytes())
        found.update(bytes([mask.strategy]))
    return found.hexdigest()


def test_random_masks_are_those_of_the_first_release():
    """Runs with random masks, the demo among them, can be repeated bit for bit."""
    only_random = {"random": 1.0, "block": 0.0, "time_frequency": 0.0}
    demo = MaskConfig(**only_random, target_fraction=0.5)
    assert digest(demo, steps=64) == "4404d544dc0bbea90db66b56d1a215cd3cf099623d67ad1ea7612e08afaed275"
    released_grid = MaskConfig(**only_random)
    assert digest(released_grid, steps=256) == "dc22de41063de3512fe3aeebaa2ee99c442460f17d97a5b4d4d935ece362c4de"
    fewer = MaskConfig(**only_random, ratio=0.7, per_sample=False)
    assert digest(fewer, steps=64) == "670454e4789264e443351da9ada70d109a07cc2959802bc2e9137e7e63ebccca"


def test_configs_from_before_the_curriculum_load():
    """A config without warmup_from and warmup_curve moves linearly, from random masks, as before."""
    old = from_yaml(MaskConfig, "{ratio: 0.8, random: 0.5, block: 0.25, time_frequency: 0.25, balanced: false}")
    assert (old.warmup_from, old.warmup_curve) == ("random", "linear")


@ALL_STRATEGIES
def test_masks_are_a_pure_function_of_the_key(strategy):
    """The same key gives the same mask, another key another one."""
    arguments = {"steps": 64, "bands": 8, "progress": 1.0, "strategy": strategy}
    first, again = (draw_mask(generator(1, "uid"), MaskConfig(), **arguments) for _ in range(2))
    other = draw_mask(generator(2, "uid"), MaskConfig(), **arguments)
    assert np.array_equal(first.target, again.target)
    assert not np.array_equal(first.target, other.target)


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


def test_warm_up_of_the_release():
    """At share a of the warm-up, block and time_frequency have a times their final probability, random has the rest."""
    config = MaskConfig(random=0.2, block=0.5, time_frequency=0.3, warmup_start=0.25, warmup_end=0.75)
    for progress in (0.25, 0.3, 0.5, 0.7499):
        way = (progress - 0.25) / 0.5
        expected = [1 - way * 0.5 - way * 0.3, way * 0.5, way * 0.3]
        np.testing.assert_allclose(strategy_probabilities(progress, config), expected, atol=1e-12)


def test_a_curriculum_can_start_with_any_strategy_and_move_early():
    """warmup_from is drawn alone at first; the root curve is half-way after a quarter of the warm-up."""
    config = MaskConfig(
        random=0, block=0, time_frequency=1, warmup_start=0, warmup_end=0.8, warmup_from="block", warmup_curve="root"
    )
    np.testing.assert_allclose(strategy_probabilities(0.0, config), [0, 1, 0])
    np.testing.assert_allclose(strategy_probabilities(0.2, config), [0, 0.5, 0.5])
    np.testing.assert_allclose(strategy_probabilities(0.8, config), [0, 0, 1])
    shares = [strategy_probabilities(p, config)[2] for p in np.linspace(0, 1, 50)]
    assert (np.diff(shares) >= 0).all()


def test_strategies_are_drawn_as_often_as_configured():
    """Frequencies of drawn strategies match the probabilities within five standard errors."""
    config = MaskConfig()
    drawn = [draw_strategy(generator("strategy", i), config, progress=0.3) for i in range(4000)]
    expected = strategy_probabilities(0.3, config)
    rate = np.bincount(drawn, minlength=3) / len(drawn)
    assert (np.abs(rate - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn))).all()


def test_a_strategy_of_weight_zero_is_never_drawn():
    """Strategies of weight 0 are never drawn."""
    config = MaskConfig(random=0, block=1, time_frequency=0, warmup_start=0, warmup_end=0)
    assert {draw_strategy(generator(i), config, progress=0.0) for i in range(500)} == {BLOCK}


@ALL_STRATEGIES
@pytest.mark.parametrize("balanced", [False, True])
def test_masks_are_fast(strategy, balanced):
    """A mask of the released grid costs less than 15 shuffles of its patches (typically 3.5) on any machine."""
    config = MaskConfig(balanced=balanced)
    mask_s, shuffle_s = [], []
    for batch in range(10):
        start = process_time()
        for row in range(30):
            draw_mask(generator(batch, row), config, steps=256, bands=8, progress=1.0, strategy=strategy)
        middle = process_time()
        for row in range(30):
            generator(batch, row).random(2048).argsort()
        mask_s.append(middle - start)
        shuffle_s.append(process_time() - middle)
    assert min(mask_s) < 15 * min(shuffle_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.0}, "mask ratio=1.0 must be between 0 and 1"),
        ({"block": -0.1}, "must not be negative"),
        ({"random": 0, "block": 0, "time_frequency": 0}, "one must be positive"),
        ({"warmup_start": 0.6}, "mask warm-up from 0.6 to 0.5 runs backwards"),
        ({"warmup_from": "rnadom"}, "warmup_from='rnadom' is unknown; choose one of random, block, time_frequency"),
        ({"warmup_curve": "cosine"}, "warmup_curve='cosine' is unknown; choose one of linear, root"),
        ({"target_fraction": 0.0}, r"target_fraction=0.0 must be in \(0, 1\]"),
    ],
)
def test_impossible_masks_are_refused(change, message):
    """Impossible mask configs are errors on construction."""
    with pytest.raises(UserError, match=message):
        MaskConfig(**change)


def test_a_single_patch_cannot_be_masked():
    """A grid of one patch is an error."""
    with pytest.raises(UserError, match="a grid of 1 patches cannot hold both"):
        num_context(MaskConfig(), 1)
