import numpy as np
import pytest
import torch

from pupujepa.errors import UserError
from pupujepa.training.diagnostics import (
    between_within_variance,
    effective_rank,
    effective_rank_per_band,
    explained_variance,
    explained_variance_per_band,
    lidar,
    mean_cosine,
    normalised_std,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal_rank(rows: int, width: int, rank: int) -> torch.Tensor:
    """Returns rows with `rank` equal non-zero singular values."""
    left = torch.linalg.qr(gaussian(rows, rank, seed=1))[0]
    right = torch.linalg.qr(gaussian(width, rank, seed=2))[0]
    return left @ right.T


def test_isotropic_features_look_healthy():
    """Isotropic Gaussian rows: std 1, cosine 0, effective rank near the width."""
    x = gaussian(20_000, 32)
    assert normalised_std(x).item() == pytest.approx(1, abs=0.01)
    assert mean_cosine(x).item() == pytest.approx(0, abs=0.01)
    assert effective_rank(x).item() == pytest.approx(32, abs=0.1)


def test_collapsed_features_look_collapsed():
    """Equal rows: std 0, cosine 1, effective rank 1."""
    x = gaussian(1, 32).expand(500, -1)
    assert normalised_std(x).item() == pytest.approx(0, abs=1e-5)
    assert mean_cosine(x).item() == pytest.approx(1, abs=1e-5)
    assert effective_rank(x).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("rank", [1, 3, 17])
def test_effective_rank_counts_equal_singular_values(rank):
    """k equal singular values have effective rank k, and scale does not matter."""
    x = orthonormal_rank(200, 32, rank)
    assert effective_rank(x).item() == pytest.approx(rank, rel=1e-3)
    assert effective_rank(1000 * x).item() == pytest.approx(rank, rel=1e-3)


def test_effective_rank_of_a_known_spectrum():
    """Singular values 2, 1, 1 have entropy of shares 1/2, 1/4, 1/4: rank 2^1.5."""
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))).item() == pytest.approx(2**1.5, rel=1e-5)


def test_mean_cosine_equals_the_plain_double_loop():
    """The closed form is the mean over all pairs."""
    x = gaussian(20, 5) + 0.5
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    expected = np.mean([unit[i] @ unit[j] for i in range(20) for j in range(20) if i != j])
    assert mean_cosine(x).item() == pytest.approx(expected, abs=1e-6)


def test_rank_per_band_finds_the_collapsed_band():
    """A band of equal tokens has rank 1, the others have their full rank."""
    states = gaussian(50, 10 * 4, 16).unflatten(1, (10, 4))
    states[:, :, 2] = 1.0
    ranks = effective_rank_per_band(states.flatten(1, 2), bands=4)
    assert ranks.shape == (4,)
    assert ranks[2].item() == pytest.approx(1, abs=1e-2)
    assert (ranks[[0, 1, 3]] > 15.5).all()


def test_explained_variance_against_the_best_constant():
    """Perfect is 1, the mean vector is 0, a wrong constant is negative, half the noise variance gives one half."""
    target = gaussian(8, 100, 16) + 3
    best = target.flatten(0, 1).mean(0).expand_as(target)
    assert explained_variance(target, target).item() == 1
    assert explained_variance(best, target).item() == pytest.approx(0, abs=1e-5)
    assert explained_variance(best + 1, target).item() < -0.5
    noise = gaussian(8, 100, 16, seed=3)
    assert explained_variance(target + noise / 2**0.5, target).item() == pytest.approx(0.5, abs=0.03)


def positional_data(batch: int = 40, positions: int = 30, chosen: int = 12):
    """Targets = a pattern of the position plus noise of variance 1; each sample has its own random positions."""
    pattern = 4 * gaussian(positions, 8, seed=1)
    rng = torch.Generator().manual_seed(2)
    index = torch.stack([torch.randperm(positions, generator=rng)[:chosen] for _ in range(batch)])
    return pattern, index, pattern[index] + gaussian(batch, chosen, 8, seed=3)


def test_explained_variance_against_positions_exposes_where_only_predictors():
    """A predictor of each position's mean scores high against the constant, and 0 against positions."""
    pattern, index, target = positional_data(batch=400)
    assert explained_variance(pattern[index], target).item() > 0.9
    assert explained_variance(pattern[index], target, index, baseline="position").item() == pytest.approx(0, abs=0.02)
    assert explained_variance(target, target, index, baseline="position").item() == 1


def test_position_baseline_is_unbiased_in_small_batches():
    """With few targets per position the true mean still scores 0 on average: the baseline's fit is corrected."""
    scores = []
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        index = torch.stack([torch.randperm(10, generator=rng)[:5] for _ in range(6)])
        target = torch.randn(6, 5, 16, generator=rng)
        scores.append(explained_variance(torch.zeros_like(target), target, index, baseline="position").item())
    assert np.mean(scores) == pytest.approx(0, abs=0.02)


def test_positions_with_a_single_target_do_not_count():
    """A position with one target has no mean to beat: it is excluded, and alone it gives NaN."""
    target = gaussian(2, 3, 4)
    index = torch.tensor([[0, 1, 2], [0, 3, 4]])
    prediction = target.clone()
    prediction[:, 1:] += 100
    assert explained_variance(prediction, target, index, baseline="position").item() == 1
    alone = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert explained_variance(target, target, alone, baseline="position").isnan()


def test_explained_variance_per_band():
    """The band is the token index modulo bands; a band without targets is NaN."""
    index = torch.arange(30).expand(20, -1) // 3 * 4 + torch.arange(30) % 3  # bands 0, 1, 2 of 4
    target = gaussian(20, 30, 8)
    prediction = target.clone()
    prediction[index % 4 == 1] = 0
    scores = explained_variance_per_band(prediction, target, index, bands=4)
    assert scores[0].item() == scores[2].item() == 1
    assert scores[1].item() == pytest.approx(0, abs=0.02)
    assert scores[3].isnan()


def test_variance_between_and_within_clips():
    """Both components are recovered, and crops independent of their clip have no variance between clips."""
    clips = 2.0 * gaussian(2000, 1, 8, seed=1)
    between, within = between_within_variance(clips + gaussian(2000, 10, 8, seed=2))
    assert between.item() == pytest.approx(4 * 8, rel=0.05)
    assert within.item() == pytest.approx(8, rel=0.05)
    between, _ = between_within_variance(gaussian(2000, 10, 8))
    assert between.item() == pytest.approx(0, abs=0.05)


def test_lidar_counts_dimensions_that_tell_clips_apart():
    """Clips that differ in k of D dimensions, equally, have LiDAR k; noise that differs within clips is not counted."""
    for k in (1, 4, 12):
        signal = torch.zeros(3000, 1, 16)
        signal[..., :k] = 30 * gaussian(3000, 1, k)
        features = signal + gaussian(3000, 10, 16, seed=5)
        assert lidar(features).item() == pytest.approx(k, rel=0.03)


def test_lidar_equals_its_definition():
    """The whitened singular values are the eigenvalues of W^-1/2 B W^-1/2 of the definition."""
    features = (gaussian(12, 1, 5) + 0.3 * gaussian(12, 4, 5, seed=1)).double().numpy()
    means = features.mean(1)
    between = np.cov(means.T, bias=True)
    residual = (features - means[:, None]).reshape(-1, 5)
    within = residual.T @ residual / len(residual) + 1e-4 * np.eye(5)
    eigenvalues = np.abs(np.linalg.eigvals(np.linalg.inv(within) @ between))
    share = eigenvalues / eigenvalues.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert lidar(torch.from_numpy(features)).item() == pytest.approx(expected, rel=1e-4)


def test_lidar_of_constant_features_is_finite():
    """Total collapse gives a finite number."""
    assert lidar(torch.ones(20, 5, 8)).isfinite()


def test_lidar_of_huge_features_of_low_rank_is_finite():
    """Beside 1e18 a ridge of 1e-4 is lost in rounding, which leaves a covariance with eigenvalues below zero."""
    features = 1e9 * torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 40)
    assert lidar(features).isfinite()


def test_wrong_shapes_are_refused():
    """Errors name inputs that allow no estimate."""
    with pytest.raises(UserError, match=r"expected at least two rows of features \[N, D\], not shape \(2, 3, 4\)"):
        effective_rank(torch.zeros(2, 3, 4))
    with pytest.raises(UserError, match="7 tokens do not make whole time steps of 4 bands"):
        effective_rank_per_band(torch.zeros(2, 7, 3), bands=4)
    with pytest.raises(UserError, match="LiDAR needs at least two clips of two crops, not 1 of 5"):
        lidar(torch.zeros(1, 5, 3))
    with pytest.raises(UserError, match="have no variance between or within"):
        between_within_variance(torch.zeros(5, 1, 3))
    with pytest.raises(UserError, match="together with target_index_BM"):
        explained_variance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), baseline="position")
