from pathlib import Path

import numpy as np
import pytest
import torch

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.datasets.targets import Split
from distributed.marble.quick.spectra import MAX_ROWS, groups_of, lidar_of, rank_of
from pupujepa.training.diagnostics import effective_rank, lidar


def split(slices: dict[str, int], groups: dict[str, str] | None = None) -> Split:
    """Tracks with the given numbers of slices."""
    tracks = tuple(LabelledTrack(u, Path(u), "train", (groups or {}).get(u, u), 10.0, {}) for u in slices)
    names = tuple(Slice(u, i) for u, count in slices.items() for i in range(count))
    return Split(tracks, names, np.arange(len(names)), tuple(s.uid for s in names), 0, 0)


def test_groups_are_tracks_of_several_slices():
    """The group size keeps most slices: three of two tracks are six, two of three also six, four fewer."""
    found = groups_of(split({"a": 4, "b": 3, "c": 1, "d": 3}))
    assert found is not None and found.kind == "tracks"
    assert found.rows_GQ.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]


def test_groups_are_pieces_where_tracks_have_one_slice():
    found = groups_of(split({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {"a": "p", "c": "p", "b": "q", "e": "q"}))
    assert found is not None and found.kind == "pieces"
    assert found.rows_GQ.tolist() == [[0, 2], [1, 4]]


def test_without_groups_lidar_does_not_apply():
    assert groups_of(split({"a": 1, "b": 1, "c": 1})) is None
    assert groups_of(split({"a": 5, "b": 1})) is None


def test_values_are_those_of_the_diagnostics():
    """RankMe of all rows, LiDAR of the groups."""
    features_ND = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    groups = groups_of(split({"a": 4, "b": 4, "c": 4}))
    assert groups is not None
    assert rank_of(features_ND) == pytest.approx(float(effective_rank(features_ND)))
    assert lidar_of(features_ND, groups) == pytest.approx(float(lidar(features_ND.unflatten(0, (3, 4)))))


def test_many_rows_are_thinned_evenly():
    """A rank-one tail beyond the limit is seen."""
    rows = MAX_ROWS + 2
    features_ND = torch.zeros(rows, 2)
    features_ND[: rows // 2, 0] = 1
    features_ND[rows // 2 :, 1] = 1
    assert rank_of(features_ND) == pytest.approx(2.0, abs=1e-3)
