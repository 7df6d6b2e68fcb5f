"""The released masking rules, patch by patch and one random number after another: slow, but easy to read.

`uniform` returns the next number in [0, 1). On a torus a shape that leaves the grid comes in at the opposite edge.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np

Uniform = Callable[[], float]
Shape = tuple[range, range]


def reference_blocks(uniform: Uniform, steps: int, bands: int, *, limit: int, torus: bool = False) -> np.ndarray:
    """Returns the patches [steps, bands] covered by rectangles, before the random fill."""

    def next_block(lacking: int) -> Shape:
        tall, aspect, area, down, across = (uniform() for _ in range(5))
        low, high = (2.0, 5.0) if tall < 0.5 else (0.2, 0.5)
        stretch = sqrt(low + aspect * (high - low))
        size = min((0.01 + area * (0.05 - 0.01)) * (steps * bands), lacking)
        if bands == 1:  # ours: a sequence has spans of the whole area
            return placed(min(max(int(size), 1), steps), down, steps, torus), range(1)
        side = sqrt(size)
        height, width = min(max(int(side * stretch), 1), steps), min(max(int(side / stretch), 1), bands)
        return placed(height, down, steps, torus), placed(width, across, bands, torus)

    return laid(next_block, steps, bands, limit=limit)


def reference_stripes(uniform: Uniform, steps: int, bands: int, *, limit: int, torus: bool = False) -> np.ndarray:
    """Returns the patches [steps, bands] covered by spans and bands, before the random fill."""
    longest = max(1, round(40 * steps / 256))
    share_of_spans = 0.5 if torus else steps / (steps + bands)

    def next_stripe(lacking: int) -> Shape:
        kind, length, down, across = (uniform() for _ in range(4))
        if kind >= share_of_spans and steps <= limit:
            return range(steps), placed(1, across, bands, torus)
        span = 1 + int(length * longest)
        if span * bands > lacking:
            span = max(1, lacking // bands)
        return placed(span, down, steps, torus), range(bands)

    return laid(next_stripe, steps, bands, limit=limit)


def placed(length: int, where: float, along: int, torus: bool) -> range:
    """Returns the patches of a shape on an axis; all places are equally likely."""
    start = int(where * (along if torus else along - length + 1))
    return range(start, start + length)


def laid(next_shape: Callable[[int], Shape], steps: int, bands: int, *, limit: int) -> np.ndarray:
    """Lays up to 150 shapes, until one would cover more than the missing patches."""
    covered = np.zeros((steps, bands), dtype=bool)
    lacking = limit
    for _ in range(150):
        if lacking == 0:
            break
        down, across = next_shape(lacking)
        patches = np.ix_([t % steps for t in down], [f % bands for f in across])
        new = int((~covered[patches]).sum())
        if new > lacking:
            break
        covered[patches] = True
        lacking -= new
    return covered


def fill(covered: np.ndarray, rng: np.random.Generator, *, limit: int) -> np.ndarray:
    """Returns the covered patches plus the missing number of random others."""
    order = np.where(covered.ravel(), -1.0, rng.random(covered.size)).argsort()
    full = np.zeros(covered.size, dtype=bool)
    full[order[:limit]] = True
    return full.reshape(covered.shape)
