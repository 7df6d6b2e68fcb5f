"""Arithmetic of resampled metrics: quotients and means that may not exist.

Legend: N items, C classes, R resamples.
"""

from collections.abc import Callable

import numpy as np

Statistics = dict[str, np.ndarray]


def unweighted(resampled: Callable[[Statistics, np.ndarray], np.ndarray], s: Statistics) -> float:
    """Returns a resampled metric of items that all count once."""
    items = len(next(iter(s.values())))
    return float(resampled(s, np.ones((1, items)))[0])


def weighted_mean(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the mean of [N] under each weighting, [R]."""
    return divide(weights_RN @ values_N, weights_RN.sum(axis=1))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 1e-12)


def mean_of_defined(values_CR: np.ndarray) -> np.ndarray:
    """Returns the mean over classes that a resample holds; NaN where it holds none."""
    defined_CR = ~np.isnan(values_CR)
    return divide(np.where(defined_CR, values_CR, 0.0).sum(axis=0), defined_CR.sum(axis=0).astype(np.float64))
