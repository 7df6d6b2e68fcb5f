"""RankMe and LiDAR of the features that probes are trained on, layer by layer.

RankMe (arXiv 2210.02885) uses all rows. LiDAR (arXiv 2312.04000) measures the variance that separates clips. Its clips
are tracks with several slices, or else pieces with several takes; without either it is undefined.

Legend: N slices, D width, G groups, Q slices of a group.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from distributed.marble.datasets.targets import Split
from pupujepa.training.diagnostics import effective_rank, lidar

# maximum rows of a singular value decomposition, spread over the split; more rows hardly change a rank
MAX_ROWS = 4096
_MOST_SLICES = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Groups:
    """Groups of slices, of equal size.

    Attributes:
        rows_GQ: indices of slices in a split.
        kind: "tracks" or "pieces".
    """

    rows_GQ: Tensor
    kind: str


def groups_of(split: Split) -> Groups | None:
    """Returns the grouping that keeps most slices; None without two groups of two slices."""
    piece_of = {t.uid: t.group for t in split.tracks}
    for kind, names in (
        ("tracks", [s.uid for s in split.slices]),
        ("pieces", [piece_of[s.uid] for s in split.slices]),
    ):
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, []).append(row)
        # groups must be equal in size: larger ones are cut, smaller ones left out
        size = max(range(2, _MOST_SLICES + 1), key=lambda q: q * _groups_with(rows.values(), q))
        if _groups_with(rows.values(), size) >= 2:
            kept = [r[:size] for r in rows.values() if len(r) >= size]
            return Groups(torch.tensor(_spread(kept, MAX_ROWS // size)), kind)
    return None


def rank_of(features_ND: Tensor) -> float:
    """Returns RankMe of at most MAX_ROWS slices."""
    rows = torch.tensor(_spread(list(range(len(features_ND))), MAX_ROWS))
    return float(effective_rank(features_ND[rows]))


def lidar_of(features_ND: Tensor, groups: Groups) -> float:
    """Returns LiDAR, which is at most the number of groups minus one."""
    return float(lidar(features_ND[groups.rows_GQ]))


def _groups_with(rows: Iterable[list[int]], size: int) -> int:
    return sum(len(r) >= size for r in rows)


def _spread(values: list[T], most: int) -> list[T]:
    stride = -(-len(values) // most)  # rounded up, so that at most `most` remain
    return values[::stride]
