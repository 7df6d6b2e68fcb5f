"""Diagnostics of features and predictions: collapse and learning both lower the loss.

All functions are pure, compute in float32 on the input's device, and return 0-d tensors unless stated.

Shapes: B batch, N rows or patches, M target patches, D width, C clips, Q crops (or tokens) of a clip.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pupujepa.errors import UserError

CONSTANT = "constant"
POSITION = "position"
_TINY = 1e-12
_LIDAR_RIDGE = 1e-4
_ROUNDING = 1e-12


def normalised_std(x_ND: Tensor) -> Tensor:
    """Returns the std of L2-normalised rows [N, D] times sqrt(D): 1 = isotropic, 0 = equal rows.

    It is the mean over the dimensions. Our alarm threshold is 0.3.

    Raises:
        UserError: fewer than two rows, or not rows.
    """
    unit_ND = functional.normalize(_rows(x_ND), dim=-1)
    return unit_ND.std(0, correction=0).mean() * x_ND.shape[-1] ** 0.5


def mean_cosine(x_ND: Tensor) -> Tensor:
    """Returns the mean cosine over all pairs of different rows [N, D]: 0 = spread out, 1 = one direction.

    Our alarm threshold is 0.9.

    Raises:
        UserError: fewer than two rows, or not rows.
    """
    unit_ND = functional.normalize(_rows(x_ND), dim=-1)
    rows = len(unit_ND)
    # |sum of unit rows|^2 counts every pair twice and every row with itself once
    return (unit_ND.sum(0).square().sum() - unit_ND.square().sum()) / (rows * (rows - 1))


def effective_rank(x_ND: Tensor) -> Tensor:
    """Returns RankMe (arXiv 2210.02885) of rows [N, D]: exp of their singular values' entropy.

    The rows are not centred. The result is between 1 and min(N, D).

    Raises:
        UserError: fewer than two rows, or not rows.
    """
    return _exp_entropy(torch.linalg.svdvals(_rows(x_ND)))


def effective_rank_per_band(states_BND: Tensor, bands: int) -> Tensor:
    """Returns the effective rank [bands] of the tokens of each frequency band.

    Args:
        states_BND: tokens of full grids in time-major order.

    Raises:
        UserError: the tokens do not fill whole time steps.
    """
    per_band = by_band(states_BND, bands)
    return torch.stack([effective_rank(per_band[:, :, band].flatten(0, 1)) for band in range(bands)])


def by_band(states_BND: Tensor, bands: int) -> Tensor:
    """Returns the tokens of full grids as [B, steps, bands, D].

    Raises:
        UserError: the tokens do not fill whole time steps.
    """
    if states_BND.shape[1] % bands:
        raise UserError(f"{states_BND.shape[1]} tokens do not make whole time steps of {bands} bands; pass full grids")
    return states_BND.unflatten(1, (-1, bands))


def explained_variance(
    prediction_BMD: Tensor, target_BMD: Tensor, target_index_BM: Tensor | None = None, *, baseline: str = CONSTANT
) -> Tensor:
    """Returns 1 - (squared error) / (that of a baseline): 1 perfect, 0 no better, negative worse.

    Args:
        prediction_BMD, target_BMD: [B, M, D]; all axes are summed.
        target_index_BM: token positions [B, M]; required by baseline "position".
        baseline: "constant", the best constant vector; "position", the mean target of each position, which needs no
            content of the audio. This mean is fitted to the same n targets, so its error is scaled by n / (n - 1), and
            positions with a single target are excluded from both sums.

    Returns:
        A scalar, NaN if no position has two targets, or all targets are equal.

    Raises:
        UserError: an unknown baseline, or "position" without positions.
    """
    error_BM = (prediction_BMD.float() - target_BMD.float()).square().sum(-1)
    if baseline == CONSTANT:
        return _ratio(error_BM.sum(), _squares_around_mean(target_BMD.float().flatten(0, 1)))
    if baseline != POSITION or target_index_BM is None:
        raise UserError(f'baseline={baseline!r}: choose "constant", or "position" together with target_index_BM')
    # the group of each target by its position, and the size of each group
    _, groups, counts = target_index_BM.flatten().unique(return_inverse=True, return_counts=True)
    target_nD = target_BMD.float().flatten(0, 1)
    sums = target_nD.new_zeros(len(counts), target_nD.shape[-1]).index_add_(0, groups, target_nD)
    squares_n = (target_nD - (sums / counts[:, None])[groups]).square().sum(-1)
    spread_n = target_nD.new_zeros(len(counts)).index_add_(0, groups, squares_n)  # around each position's mean
    counted = counts >= 2  # a single target equals its position's mean, so its baseline error is 0
    unbiased = spread_n * counts / (counts - 1).clamp_min(1)
    return _ratio(error_BM.flatten()[counted[groups]].sum(), unbiased[counted].sum())


def explained_variance_per_band(
    prediction_BMD: Tensor, target_BMD: Tensor, target_index_BM: Tensor, *, bands: int
) -> Tensor:
    """Returns each band's explained variance [bands] against its best constant; NaN without targets."""
    band_n = (target_index_BM % bands).flatten()  # token index = step * bands + band
    error_n = (prediction_BMD.float() - target_BMD.float()).square().sum(-1).flatten()
    target_nD = target_BMD.float().flatten(0, 1)
    return torch.stack(
        [
            _ratio(error_n[band_n == band].sum(), _squares_around_mean(target_nD[band_n == band]))
            for band in range(bands)
        ]
    )


def between_within_variance(features_CQD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the variance between clips and within clips, each summed over the width.

    Both are unbiased: crops that do not depend on their clip have an expected between-clip variance of 0.

    Args:
        features_CQD: [C, Q, D], Q >= 2 crops or tokens of each of C >= 2 clips.

    Raises:
        UserError: fewer than two clips, or fewer than two crops of each.
    """
    clips, crops, _ = features_CQD.shape
    if clips < 2 or crops < 2:
        raise UserError(f"{clips} clips of {crops} crops have no variance between or within; give at least two of each")
    within = features_CQD.float().var(1, correction=1).mean(0).sum()
    of_means = features_CQD.float().mean(1).var(0, correction=1).sum()
    return of_means - within / crops, within  # a mean of Q crops still holds 1 / Q of the variance within


def lidar(features_CQD: Tensor) -> Tensor:
    """Returns LiDAR (arXiv 2312.04000): the effective rank between clips, whitened by that within.

    Args:
        features_CQD: [C, Q, D], Q crops (10 is usual) of each of C clips; the result cannot exceed C - 1.

    Raises:
        UserError: fewer than two clips, or fewer than two crops of each.
    """
    clips, crops, _ = features_CQD.shape
    if clips < 2 or crops < 2:
        raise UserError(f"LiDAR needs at least two clips of two crops, not {clips} of {crops}")
    features_CQD = features_CQD.double()
    mean_CD = features_CQD.mean(1)
    centred_CD = mean_CD - mean_CD.mean(0)
    residual_nD = (features_CQD - mean_CD[:, None]).flatten(0, 1)
    within_DD = residual_nD.T @ residual_nD / (clips * crops)
    # for large features rounding would swallow a fixed ridge, and W would not be positive definite
    ridge = max(_LIDAR_RIDGE, _ROUNDING * within_DD.trace().item())
    within_DD.diagonal().add_(ridge)
    # with W = L L^T, eigenvalues of W^-1/2 B W^-1/2 are squared singular values of the clip means, whitened by L
    whitened_DC = torch.linalg.solve_triangular(torch.linalg.cholesky(within_DD), centred_CD.T, upper=False)
    return _exp_entropy(torch.linalg.svdvals(whitened_DC).square()).float()


def _rows(x_ND: Tensor) -> Tensor:
    if x_ND.ndim != 2 or len(x_ND) < 2:
        raise UserError(f"expected at least two rows of features [N, D], not shape {tuple(x_ND.shape)}; flatten first")
    return x_ND.float()


def _exp_entropy(values: Tensor) -> Tensor:
    share = values / values.sum().clamp_min(_TINY)
    return torch.special.entr(share).sum().exp()


def _ratio(error: Tensor, baseline_error: Tensor) -> Tensor:
    return torch.where(baseline_error > 0, 1 - error / baseline_error, torch.nan)


def _squares_around_mean(x_nD: Tensor) -> Tensor:
    return (x_nD - x_nD.mean(0)).square().sum() if len(x_nD) else x_nD.new_zeros(())
