import numpy as np
import pytest
import torch
from torch.nn import functional

from pupujepa.attention.maps import attention_weights, contexts_around, predictor_attention, region_attention
from pupujepa.errors import UserError
from pupujepa.randomness import generator
from pupujepa.training.masks import Mask, MaskConfig, draw_mask, num_context
from tests.pupujepa.models import SMALL, random_mel, random_model


@pytest.fixture
def region() -> np.ndarray:
    """Three steps of the two lowest bands of a 16 x 8 grid."""
    region = np.zeros((16, 8), dtype=bool)
    region[5:8, :2] = True
    return region


def mask_around(region: np.ndarray) -> Mask:
    """Returns the first context around a region."""
    return next(contexts_around(region, ratio=0.8, seed=0))


def region_of(tokens) -> np.ndarray:
    """Returns the region of some token indices on the 16 x 8 grid."""
    return np.isin(np.arange(128), tokens).reshape(16, 8)


def test_maps_are_distributions_over_the_grid(small_model, region):
    """Every map is a distribution over the predictor's tokens, which here are all patches."""
    attention = predictor_attention(small_model, random_mel(64, 128), mask_around(region), region=region)
    assert attention.shape == (2, 2, 16, 8)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 2))
    assert (attention > 0).all()
    torch.testing.assert_close(attention.mean((0, 1)).sum(), torch.tensor(1.0))


def test_weights_applied_to_values_are_scaled_dot_product_attention():
    """softmax(q k^T / sqrt(d)) v equals torch's attention."""
    query, key, value = (random_mel(2, 3, 10, 16, seed=i) for i in range(3))
    torch.testing.assert_close(
        attention_weights(query, key) @ value,
        functional.scaled_dot_product_attention(query, key, value),
        atol=1e-5,
        rtol=1e-5,
    )


def test_maps_are_those_of_the_forward_pass(small_model, region, monkeypatch):
    """Queries and keys are those of the predictor's own forward pass, block by block."""
    seen = []
    original = functional.scaled_dot_product_attention

    def spy(query, key, value):
        seen.append((query, key))
        return original(query, key, value)

    mask = mask_around(region)
    mel = random_mel(64, 128)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    attention = predictor_attention(small_model, mel, mask, region=region)
    predictor_calls = seen[SMALL.depth :]
    assert len(predictor_calls) == SMALL.predictor_depth
    sequence = np.concatenate([mask.context, mask.target])
    rows = np.flatnonzero(np.isin(sequence, np.flatnonzero(region)))
    for layer, (query, key) in enumerate(predictor_calls):
        scores = torch.einsum("hnd,hmd->hnm", query[0].double(), key[0].double()) / query.shape[-1] ** 0.5
        expected = scores.softmax(-1)[:, rows].mean(1)
        found = attention[layer].flatten(1)[:, sequence]
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)


def test_patches_that_take_no_part_are_nan(small_model):
    """With half of the masked patches as targets, only the other half is NaN."""
    mask = draw_mask(generator(1), MaskConfig(target_fraction=0.5), steps=16, bands=8, progress=0.0)
    attention = predictor_attention(small_model, random_mel(64, 128), mask, region=region_of(mask.target[:4]))
    taking_part = np.isin(np.arange(128), np.concatenate([mask.context, mask.target]))
    assert torch.equal(~attention[0, 0].flatten().isnan(), torch.from_numpy(taking_part))
    torch.testing.assert_close(attention.nansum((2, 3)), torch.ones(2, 2))


def test_position_alone_decides_where_keys_are_equal(region):
    """With queries and keys that know only position, each token attends most to itself."""
    model = random_model()
    for block in model.predictor.blocks:
        with torch.no_grad():
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.fill_(3.0)
    mask = mask_around(region)
    for token in np.flatnonzero(region):
        attention = predictor_attention(model, random_mel(64, 128), mask, region=region_of(token))
        assert (attention.flatten(2).argmax(-1) == token).all()


def test_impossible_regions_are_refused(small_model, region):
    """Empty, visible and misshapen regions are errors that give the reason."""
    mask = mask_around(region)
    mel = random_mel(64, 128)
    with pytest.raises(UserError, match="the region is empty"):
        predictor_attention(small_model, mel, mask, region=np.zeros((16, 8), bool))
    with pytest.raises(UserError, match=r"1 of the region's 1 patches are not targets of the mask"):
        predictor_attention(small_model, mel, mask, region=region_of(mask.context[:1]))
    with pytest.raises(UserError, match=r"the region has shape \(8, 16\), the spectrogram's grid is \(16, 8\)"):
        predictor_attention(small_model, mel, mask, region=region.T)


def test_contexts_deal_every_patch_outside_the_region_and_none_inside(region):
    """Sizes are those of training; only the filled-up last context repeats patches."""
    masks = list(contexts_around(region, ratio=0.8, seed=0))
    size = num_context(MaskConfig(), region.size)
    dealt = np.bincount(np.concatenate([m.context for m in masks]), minlength=region.size)
    assert all(len(m.context) == size for m in masks)
    assert all(np.array_equal(np.union1d(m.context, m.target), np.arange(region.size)) for m in masks)
    assert (dealt[region.ravel()] == 0).all()
    assert (dealt[~region.ravel()] >= 1).all()
    assert dealt.sum() - (~region).sum() < size


def test_a_region_map_is_the_attention_of_all_passes_put_together(small_model, region):
    """Each patch holds the attention of the pass that saw it, scaled so that a head's map sums to one."""
    mel = random_mel(64, 128)
    found = region_attention(small_model, mel, region)
    assert found.shape == (2, 2, 16, 8)
    np.testing.assert_allclose(found.sum((-2, -1)), 1, rtol=1e-9)
    assert (found[..., region] == 0).all()
    first, *later = contexts_around(region, ratio=0.8, seed=0)
    grid = predictor_attention(small_model, mel, first, region=region).numpy()
    rows, own = (maps.reshape(2, 2, -1)[..., first.context] for maps in (grid, found))
    # patches of one pass keep their proportions, but for those that a later pass saw again
    once = ~np.isin(first.context, np.concatenate([m.context for m in later]))
    ratio = own[..., once] / rows[..., once]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)


def test_the_whole_crop_is_no_region(small_model):
    """A region of the whole crop is an error."""
    with pytest.raises(UserError, match="the region covers the whole crop"):
        region_attention(small_model, random_mel(64, 128), np.ones((16, 8), bool))
