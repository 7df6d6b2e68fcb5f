import numpy as np
import pytest

from distributed.experiment import load_experiment
from pupujepa.training.masks import strategy_probabilities


@pytest.mark.parametrize("recipe", ["paper", "robust", "demo"])
def test_the_curriculum_is_laid_over_any_recipe(recipe):
    """`--preset RECIPE --preset a_jepa` changes the masks' weights and pace, and nothing else of the recipe."""
    plain, curriculum = load_experiment([recipe]), load_experiment([recipe, "a_jepa"])
    for section in ("model", "objective", "ema", "schedule", "optimizer", "stream", "engine", "train"):
        assert getattr(plain, section) == getattr(curriculum, section)
    assert curriculum.masks.ratio == plain.masks.ratio
    assert curriculum.masks.target_fraction == plain.masks.target_fraction


def test_the_curriculum_moves_from_blocks_to_time_frequency():
    """Blocks alone at first, half of all masks after a quarter of the run, none at its end; a third over the run."""
    masks = load_experiment(["robust", "a_jepa"]).masks
    np.testing.assert_allclose(strategy_probabilities(0.0, masks), [0, 1, 0])
    np.testing.assert_allclose(strategy_probabilities(0.25, masks), [0, 0.5, 0.5])
    np.testing.assert_allclose(strategy_probabilities(1.0, masks), [0, 0, 1])
    over_the_run = np.mean([strategy_probabilities(p, masks) for p in np.linspace(0, 1, 2001)], axis=0)
    np.testing.assert_allclose(over_the_run, [0, 1 / 3, 2 / 3], atol=1e-3)
