"""Attention maps: every patch outside the hidden region is seen once, and the shares are shares."""

import numpy as np
import torch

from distributed.report.attention import PLACES, load_export, patch_places, place_shares, region_grid, times_even
from pupujepa.attention.region import Box
from pupujepa.model.model import ModelConfig
from pupujepa.weights.weights import load

GRID = (32, 8)
BOX = Box(8, 4, 2, 2)
MODEL = ModelConfig(
    crop_frames=128, width=16, depth=1, heads=2, predictor_width=16, predictor_depth=2, predictor_heads=2
)


def test_places_divide_the_grid():
    """Each patch outside the region is in exactly one place; an even map has each place's area as its share."""
    places = patch_places(BOX, GRID, step_s=0.04)
    assert ((places == -1) == BOX.mask(GRID)).all()
    assert set(np.unique(places)) == {-1, *range(len(PLACES))}
    assert (places[8:12, [0, 1, 4, 5, 6, 7]] == 0).all()
    # 0.25 s is six steps of 0.04 s
    assert (places[[2, 7, 12, 17], 2:4] == 1).all()
    assert (places[[1, 18], 2:4] == 2).all()
    even = np.where(places == -1, 0, 1 / (places != -1).sum())
    area = [(places == i).sum() / (places != -1).sum() for i in range(len(PLACES))]
    np.testing.assert_allclose(place_shares([even], [BOX], step_s=0.04), area)


def test_a_grid_of_one_band_has_no_other_bands():
    """In the 1-D structure two of the places do not exist: nothing is divided by their share of zero."""
    grid, box = (32, 1), Box(8, 4, 0, 1)
    even = np.where(box.mask(grid), 0.0, 1 / 28)
    shares = place_shares([even], [box], step_s=0.04)
    assert shares[[0, 3]].tolist() == [0, 0]
    np.testing.assert_allclose(times_even(shares, shares), [0, 1, 1, 0])


def test_regions_cover_the_grid_without_overlap():
    """Every patch can be chosen as part of one region."""
    assert sum(t.mask(GRID).astype(int) for t in region_grid(MODEL)).tolist() == np.ones(GRID, int).tolist()


def test_weights_are_those_of_the_export(made_run):
    """The page shows the run's model, not another."""
    ours, theirs = load_export(str(made_run)).state_dict(), load(made_run / "export").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
