"""Resampled metrics and their 95 % intervals.

The bootstrap draws whole units: pieces, not takes or slices. Takes of one piece share its notes, so resampling takes
would overstate the evidence. All encoders of a task have the same resamples, which makes their differences paired.

Legend: N items, C classes, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pupujepa.randomness import generator

LEVEL = 0.95

Statistics = dict[str, np.ndarray]


def resample_weights(units: Sequence[str], *, resamples: int, seed: int) -> np.ndarray:
    """Returns the number of times each item is drawn, [R, N], if whole units are drawn with replacement.

    Args:
        units: unit of every item; items of one unit are drawn together.
    """
    names, unit_of_item_N = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    draws_RU = generator(seed, "bootstrap", len(names)).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    return draws_RU[:, unit_of_item_N].astype(np.float64)  # items of a unit share its count


def central_interval(values_R: np.ndarray) -> tuple[float, float]:
    """Returns the central 95 % interval of resampled values, without NaN."""
    low, high = np.nanquantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def unweighted(resampled: Callable[[Statistics, np.ndarray], np.ndarray], s: Statistics) -> float:
    """Returns a resampled metric with weight 1 for every item."""
    items = len(next(iter(s.values())))
    return float(resampled(s, np.ones((1, items)))[0])


def weighted_mean(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the mean of [N] under each weighting, [R]."""
    return divide(weights_RN @ values_N, weights_RN.sum(axis=1))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient; NaN if the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 1e-12)


def mean_of_defined(values_CR: np.ndarray) -> np.ndarray:
    """Returns the mean over the classes defined in each resample, [R]; NaN without any."""
    defined_CR = ~np.isnan(values_CR)
    return divide(np.where(defined_CR, values_CR, 0.0).sum(axis=0), defined_CR.sum(axis=0).astype(np.float64))
