import numpy as np
import torch

from distributed.marble.features.reading import Features, statistics_of


def test_each_dimension_is_scaled_over_slices_and_frames():
    """Every dimension of every layer gets mean 0 and deviation 1, as in numpy; others get the same scale."""
    values_LNTD = torch.randn(2, 50, 3, 4, generator=torch.Generator().manual_seed(0)) * 7 + 100
    mean_LD, scale_LD = statistics_of(Features(values_LNTD))
    np.testing.assert_allclose(mean_LD, values_LNTD.double().mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scale_LD, values_LNTD.double().std((1, 2), correction=0), rtol=1e-5)
    others_LNTD = Features(torch.full((2, 1, 1, 4), 100.0)).standardised(mean_LD, scale_LD).values_LNTD
    np.testing.assert_allclose(others_LNTD[:, 0, 0], (100 - mean_LD) / scale_LD, rtol=1e-4, atol=1e-6)


def test_a_dimension_that_training_never_moves_is_not_blown_up():
    """A constant dimension has scale 1, despite rounding errors: a change of 1 stays 1."""
    train = Features(torch.tensor([0.0, 5.0, 1e4 / 3]).expand(1, 1000, 1, 3))
    moved_LNTD = (train.values_LNTD[:, :1] + 1).clone()
    np.testing.assert_allclose(Features(moved_LNTD).standardised(*statistics_of(train)).values_LNTD, 1, rtol=1e-3)
