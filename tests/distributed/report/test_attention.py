"""Attention maps: every patch outside the hidden region is seen once, and the shares are shares."""

import numpy as np
import pytest
import torch

from distributed.report.attention import (
    PLACES,
    Tile,
    contexts_around,
    load_export,
    place_of,
    place_shares,
    region_attention,
    tile_grid,
)
from distributed.report.similarity import compressed
from pupujepa.attention import predictor_attention
from pupujepa.masks import MaskConfig, num_context
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.weights import load

GRID = (32, 8)
TILE = Tile(8, 4, 2, 2)
MODEL = ModelConfig(
    crop_frames=128, width=16, depth=1, heads=2, predictor_width=16, predictor_depth=2, predictor_heads=2
)


def test_contexts_deal_every_patch_outside_the_region_and_none_inside():
    """Sizes are those of training; only the filled-up last context repeats patches."""
    inside = TILE.mask(GRID)
    masks = list(contexts_around(inside, MaskConfig(), seed=0))
    size = num_context(MaskConfig(), inside.size)
    dealt = np.bincount(np.concatenate([m.context for m in masks]), minlength=inside.size)
    assert all(len(m.context) == size for m in masks)
    assert all(np.array_equal(np.union1d(m.context, m.target), np.arange(inside.size)) for m in masks)
    assert (dealt[inside.ravel()] == 0).all()
    assert (dealt[~inside.ravel()] >= 1).all()
    assert dealt.sum() - (~inside).sum() < size


def test_a_region_map_is_the_library_s_attention_put_together():
    """Each patch holds the attention of the pass that saw it, scaled so that a head's map sums to one."""
    model = PupuJEPA(MODEL, seed=3).eval()
    mel_TF = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    inside = TILE.mask(GRID)
    found = region_attention(model, mel_TF, TILE, masks=MaskConfig())
    assert found.shape == (2, 2, *GRID)
    np.testing.assert_allclose(found.sum((-2, -1)), 1, rtol=1e-5)
    assert (found[..., inside] == 0).all()
    first = next(iter(contexts_around(inside, MaskConfig(), seed=0)))
    rows = predictor_attention(model, mel_TF, first, region=inside).grid.numpy().reshape(2, 2, -1)[..., first.context]
    own = found.reshape(2, 2, -1)[..., first.context]
    # patches of one pass keep their proportions, but for those that a later pass saw again
    again = np.concatenate([m.context for m in list(contexts_around(inside, MaskConfig(), seed=0))[1:]])
    once = ~np.isin(first.context, again)
    ratio = own[..., once] / rows[..., once]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)


def test_places_divide_the_grid():
    """Each patch outside the region is in exactly one place; an even map has each place's area as its share."""
    places = place_of(TILE, GRID, step_s=0.04)
    assert ((places == -1) == TILE.mask(GRID)).all()
    assert set(np.unique(places)) == {-1, *range(len(PLACES))}
    assert (places[8:12, [0, 1, 4, 5, 6, 7]] == 0).all()
    # 0.25 s is six steps of 0.04 s
    assert (places[[2, 7, 12, 17], 2:4] == 1).all()
    assert (places[[1, 18], 2:4] == 2).all()
    even = np.where(places == -1, 0, 1 / (places != -1).sum())[None, None]
    area = [(places == i).sum() / (places != -1).sum() for i in range(len(PLACES))]
    np.testing.assert_allclose(place_shares([even], [TILE], step_s=0.04), area)


def test_tiles_cover_the_grid_without_overlap():
    """Every patch can be chosen as part of one region."""
    assert sum(t.mask(GRID).astype(int) for t in tile_grid(MODEL)).tolist() == np.ones(GRID, int).tolist()


def test_features_keep_their_cosines_when_all_components_are_kept():
    """The compression is a rotation; with fewer components it says how much it keeps."""
    features = np.random.default_rng(0).standard_normal((40, 8)) + 3
    vectors, kept = compressed(features, 8)
    centred = features - features.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, unit @ unit.T, atol=1e-12)
    assert kept == pytest.approx(1)
    fewer, kept = compressed(features, 3)
    assert fewer.shape == (40, 3)
    assert 0 < kept < 1


def test_weights_are_those_of_the_export(made_run):
    """The page shows the run's model, not another."""
    ours, theirs = load_export(str(made_run)).state_dict(), load(made_run / "export").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
