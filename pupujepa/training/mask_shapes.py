"""Shapes of structured masks: rectangles, or time spans and bands, laid until enough is covered.

The rules are exactly those of the released masking code on its grid of 256 x 8 patches:

- blocks: area uniform over 1-5 % of the grid; aspect (steps over bands) uniform over 2-5 or, equally often, 0.2-0.5.
- stripes: with P = steps / (steps + bands) a span of 1-40 steps over all bands, else one band over all time.
- A shape requests at most the missing number of patches. Its place is uniform inside the grid and may overlap earlier
  shapes. The first shape that would still cover too many ends the mask, and so do 150 shapes.

Because shapes stay inside the grid, few reach an edge. The first and the last step are covered by 23 % of block masks
and 18 % of stripe masks, the middle steps by over 80 %; blocks cover the outer bands in 66 %, the middle ones in 89 %.
On a `torus` (ours) a shape may start anywhere and continues at the opposite edge, and spans and bands are equally
likely (P = 1/2). All patches are then equivalent by symmetry, so each is covered equally often.

Also ours, where the release fails or degenerates: spans scale with a grid that is not 256 steps long, and no band is
drawn if one alone exceeds the limit.

A sequence is a grid with one band: a block is then a span of 1-5 % of its tokens, and a stripe always a span, of up to
the tokens that 1-40 steps of a grid hold.

A set of patches is a Python integer with bit `step * bands + band`, because the rules are sequential and the grid is
small. A rectangle, a union and a count take a fifth of a microsecond, less than any single call of numpy.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_SHAPES = 150
BLOCK_AREA = (0.01, 0.05)
TALL_ASPECT, WIDE_ASPECT = (2.0, 5.0), (0.2, 0.5)
LONGEST_SPAN_STEPS, RELEASED_STEPS = 40, 256


class Grid(NamedTuple):
    """Patches along time and frequency; on a torus, shapes continue at the opposite edge."""

    steps: int
    bands: int
    torus: bool = False

    @property
    def slack(self) -> int:
        """1 if a shape's length limits its places along an axis, 0 on a torus."""
        return 0 if self.torus else 1


# steps [top, bottom) of bands [left, right); an end beyond the axis wraps around
Rectangle = tuple[int, int, int, int]
Shrink = Callable[[int, int], Rectangle]


def blocks(rng: np.random.Generator, grid: Grid, limit: int) -> NDArray[np.bool_]:
    """Returns a mask [steps * bands] of the patches that rectangles cover, at most `limit`."""
    steps, bands, slack = grid.steps, grid.bands, grid.slack
    tall, aspect, area, down, across = rng.random((5, MAX_SHAPES))  # all at once: one call a shape would be slow
    stretch = np.sqrt(np.where(tall < 0.5, _scaled(aspect, TALL_ASPECT), _scaled(aspect, WIDE_ASPECT)))
    size = _scaled(area, BLOCK_AREA) * (steps * bands)
    side = np.sqrt(size)
    long_side = size if bands == 1 else side * stretch  # a sequence has spans of the whole area
    height = np.minimum(np.maximum(long_side.astype(np.int64), 1), steps)
    width = np.minimum(np.maximum((side / stretch).astype(np.int64), 1), bands)
    top = (down * (steps - slack * (height - 1))).astype(np.int64)
    left = (across * (bands - slack * (width - 1))).astype(np.int64)
    stretches, downs, acrosses = stretch.tolist(), down.tolist(), across.tolist()

    # a quarter of all shapes shrink, so speed matters: `or 1` is a maximum
    def shrink(number: int, lacking: int) -> Rectangle:
        short_side, its_stretch = math.sqrt(lacking), stretches[number]
        height, width = int(short_side * its_stretch) or 1, int(short_side / its_stretch) or 1
        height = lacking if bands == 1 else height
        height, width = height if height < steps else steps, width if width < bands else bands
        top = int(downs[number] * (steps - slack * (height - 1)))
        left = int(acrosses[number] * (bands - slack * (width - 1)))
        return top, top + height, left, left + width

    return _lay(_Shapes(size, top, top + height, left, left + width), shrink, grid, limit)


def stripes(rng: np.random.Generator, grid: Grid, limit: int) -> NDArray[np.bool_]:
    """Returns a mask [steps * bands] of the patches that time spans and bands cover, at most `limit`."""
    steps, bands, slack = grid.steps, grid.bands, grid.slack
    along_time, length, down, across = rng.random((4, MAX_SHAPES))
    share_of_spans = 1.0 if steps > limit else 0.5 if grid.torus else steps / (steps + bands)
    is_span = along_time < share_of_spans
    longest = max(1, round(LONGEST_SPAN_STEPS * steps / RELEASED_STEPS))
    height = np.where(is_span, 1 + (length * longest).astype(np.int64), steps)
    width = np.where(is_span, bands, 1)
    top = np.where(is_span, (down * (steps - slack * (height - 1))).astype(np.int64), 0)
    left = np.where(is_span, 0, (across * bands).astype(np.int64))
    # a band cannot shrink, so it requests 0 and is checked by its cover only
    size = np.where(is_span, height * bands, 0)
    downs = down.tolist()

    def shrink(number: int, lacking: int) -> Rectangle:
        height = max(1, lacking // bands)
        top = int(downs[number] * (steps - slack * (height - 1)))
        return top, top + height, 0, bands

    return _lay(_Shapes(size, top, top + height, left, left + width), shrink, grid, limit)


class _Shapes(NamedTuple):
    """Shapes in order, arrays [MAX_SHAPES]: the requested patches, and the full-size rectangle."""

    size: NDArray[np.float64] | NDArray[np.int64]
    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]


def _lay(shapes: _Shapes, shrink: Shrink, grid: Grid, limit: int) -> NDArray[np.bool_]:
    rows, columns = _edges(grid.steps, grid.bands)
    covered, lacking = 0, limit
    for number, (size, top, bottom, left, right) in enumerate(zip(*[a.tolist() for a in shapes])):
        if size > lacking:
            top, bottom, left, right = shrink(number, lacking)
        union = covered | (rows[top] ^ rows[bottom]) & (columns[left] ^ columns[right])  # & binds tighter than |
        would_lack = limit - union.bit_count()
        if would_lack < 0:
            break
        covered, lacking = union, would_lack
        if not lacking:
            break
    return _as_array(covered, grid.steps * grid.bands)


@lru_cache(maxsize=16)
def _edges(steps: int, bands: int) -> tuple[Sequence[int], Sequence[int]]:
    """Returns two lists of sets: the patches of the first x steps, and of the first x bands.

    `rows[top] ^ rows[bottom]` are then the steps [top, bottom). Beyond the end of the axis the lists continue with
    complements, so that the same expression holds for shapes that wrap around.
    """
    everything = (1 << steps * bands) - 1
    of_each_step = everything // ((1 << bands) - 1)
    rows = [(1 << x * bands) - 1 for x in range(steps + 1)]
    columns = [((1 << x) - 1) * of_each_step for x in range(bands + 1)]
    return tuple(rows + [everything ^ r for r in rows[1:]]), tuple(columns + [everything ^ c for c in columns[1:]])


def _as_array(patches: int, size: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(patches.to_bytes(-(-size // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)


def _scaled(uniform: NDArray[np.float64], ends: tuple[float, float]) -> NDArray[np.float64]:
    return ends[0] + uniform * (ends[1] - ends[0])
