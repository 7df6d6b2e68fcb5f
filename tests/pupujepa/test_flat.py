"""The flattened control: equal to the 2-D model in everything but positions and masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pupujepa.cost.cost import count_parameters, model_size, size_names, training_cost
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA, encoder_rotation
from pupujepa.model.rope import Rotation, rotate
from pupujepa.randomness import generator
from pupujepa.training.masks import BLOCK, RANDOM, TIME_FREQUENCY, MaskConfig, draw_mask
from pupujepa.training.objective import ObjectiveConfig
from tests.pupujepa.models import SMALL, random_mel, random_model

FLAT, BY_BAND = replace(SMALL, structure="flat"), replace(SMALL, structure="flat_by_band")
STEPS, BANDS = SMALL.grid_steps, SMALL.grid_bands


@pytest.mark.parametrize("size", size_names())
@pytest.mark.parametrize("structure", ["flat", "flat_by_band"])
def test_parameters_tokens_and_operations_are_those_of_two_dimensions(size, structure):
    """Nothing must be matched: every count of the flattened twin equals that of the 2-D model, in every size."""
    grid = model_size(size)
    flat = replace(grid, structure=structure)
    assert count_parameters(flat) == count_parameters(grid)
    assert flat.num_patches == grid.num_patches
    costs = [training_cost(c, MaskConfig(structure=c.structure), ObjectiveConfig()) for c in (grid, flat)]
    assert costs[0] == costs[1]


def test_the_initial_weights_are_those_of_two_dimensions():
    """The untrained twins differ in no parameter."""
    grid, flat = (PupuJEPA(config, seed=3).state_dict() for config in (SMALL, FLAT))
    assert grid.keys() == flat.keys()
    assert all(torch.equal(grid[name], flat[name]) for name in grid)


def test_the_last_band_of_a_step_is_next_to_the_first_of_the_next_step():
    """Attention of one query and key depends on their distance in the sequence only, across steps too."""
    model = random_model(replace(FLAT, depth=1))
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    turn = encoder_rotation(model.config, STEPS, torch.device("cpu"))
    assert turn is not None

    def score(first, second):
        one, two = (rotate(x, Rotation(turn.cos[i], turn.sin[i])) for x, i in ((query, first), (key, second)))
        return (one * two).sum().item()

    within_a_step, across_steps = score(0, 1), score(BANDS - 1, BANDS)
    assert across_steps == pytest.approx(within_a_step, abs=1e-4)
    assert score(0, BANDS) != pytest.approx(within_a_step, abs=1e-2)


def test_the_other_order_is_the_same_model_of_transposed_patches():
    """Band by band, the states are those of `flat` after the same tokens came in the other order."""
    one, other = random_model(FLAT), random_model(BY_BAND)
    other.load_state_dict(one.state_dict())
    mel = random_mel(2, 64, 128)
    expected = other.encode(mel, layers=[-1])[0]
    by_band = torch.arange(STEPS * BANDS).unflatten(0, (STEPS, BANDS)).T.flatten()
    rotation = encoder_rotation(FLAT, STEPS, mel.device)
    states = one.teacher.hidden_states(one.tokens(mel)[:, by_band], rotation, layers=[SMALL.depth])[0]
    torch.testing.assert_close(states, expected[:, by_band], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one.encode(mel, layers=[-1])[0], expected, atol=1e-3)


@pytest.mark.parametrize("strategy", [BLOCK, TIME_FREQUENCY])
def test_masks_are_spans_of_the_sequence(strategy):
    """On 2048 tokens the longest hidden runs hold at least 1 % of them, and no band is hidden alone."""
    config = MaskConfig(structure="flat")
    for seed in range(20):
        mask = draw_mask(generator(seed), config, steps=256, bands=8, progress=1.0, strategy=strategy)
        assert (len(mask.context), len(mask.target)) == (410, 1638)
        hidden = np.zeros(2048, bool)
        hidden[mask.target] = True
        ends = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
        runs = ends[1::2] - ends[::2]
        assert runs.max() >= 20
        # rectangles of a grid would leave thousands of short runs; the random rest here is a few per cent
        assert len(runs) < 150


@pytest.mark.parametrize("strategy", [RANDOM, BLOCK, TIME_FREQUENCY])
def test_masks_of_both_orders_are_one_draw(strategy):
    """The same places of the sequence are hidden; the orders differ in which patch has a place."""
    flat, by_band = (
        draw_mask(generator(1), MaskConfig(structure=s), steps=6, bands=8, progress=1.0, strategy=strategy)
        for s in ("flat", "flat_by_band")
    )
    places = np.sort(by_band.target % 8 * 6 + by_band.target // 8)
    np.testing.assert_array_equal(places, flat.target)


def test_random_masks_are_those_of_two_dimensions():
    """Random masks know no structure, so a run with them differs from its 2-D twin in positions only."""
    grid, flat = (
        draw_mask(generator(1), MaskConfig(structure=s), steps=16, bands=8, progress=1.0, strategy=RANDOM)
        for s in ("2d", "flat")
    )
    np.testing.assert_array_equal(grid.target, flat.target)


def test_sincos_positions_have_no_other_order():
    """A patch's place depends on the length of the clip there, which added positions do not know."""
    with pytest.raises(UserError, match="structure=flat_by_band has no position_code=sincos"):
        replace(BY_BAND, position_code="sincos")
    assert random_model(replace(FLAT, position_code="sincos")).encode(random_mel(1, 64, 128))[-1].isfinite().all()
