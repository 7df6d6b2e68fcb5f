"""95 % intervals by resampling the units that were drawn independently: pieces, not takes, and never slices.

Two takes of one piece share its notes, so resampling takes would pretend to more evidence than there is. The same
resamples serve every encoder of a task: differences between encoders are paired.

Legend: R resamples, N test items.
"""

from collections.abc import Sequence

import numpy as np

from pupujepa.randomness import generator

LEVEL = 0.95


def resample_weights(units: Sequence[str], *, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each item is drawn, [R, N], when whole units are drawn with replacement.

    Args:
        units: the unit of every item; items of one unit are always drawn together.
    """
    names, unit_of_item_N = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    draws_RU = generator(seed, "bootstrap", len(names)).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    return draws_RU[:, unit_of_item_N].astype(np.float64)


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """Returns the central 95 % of resampled values; resamples without a value (NaN) are left out."""
    low, high = np.nanquantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
