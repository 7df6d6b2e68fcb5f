from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.datasets.targets import Split
from distributed.marble.quick import (
    MAX_ROWS,
    TEMPERATURE,
    class_mean_scores,
    draw_shots,
    groups_of,
    knn_scores,
    neighbour_counts,
    resampled_mean,
    spectrum_of,
)
from pupujepa.training.diagnostics import effective_rank, lidar


def directions(rng: np.random.Generator, count: int, width: int = 6) -> np.ndarray:
    x_ND = rng.normal(size=(count, width))
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 40))
def test_knn_is_scikit_learns(seed: int, items: int):
    """For every number of neighbours, shares equal those of scikit-learn's classifier with the same weights."""
    rng = np.random.default_rng(seed)
    train_ND, asked_ND = directions(rng, items), directions(rng, 7)
    classes_N = np.arange(items) % 3
    scores_KNC = knn_scores(train_ND, np.eye(3)[classes_N], asked_ND)
    for k, scores_NC in zip(neighbour_counts(items), scores_KNC, strict=True):
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / TEMPERATURE)
        ).fit(train_ND, classes_N)
        np.testing.assert_allclose(scores_NC, reference.predict_proba(asked_ND), atol=1e-6)


def test_numbers_of_neighbours_fit_the_training_split():
    assert neighbour_counts(12) == (1, 3, 5, 10)
    assert neighbour_counts(1) == (1,)


def test_tags_are_shares_of_neighbours():
    """Two tags can both be likely: rows do not sum to one."""
    train_ND = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels_NC = np.array([[1, 1], [1, 0], [0, 0]])
    nearest, three = knn_scores(train_ND, labels_NC, np.array([[1.0, 0.0]]))
    assert nearest[0, 0] == 1
    np.testing.assert_allclose(three[0], [1, 0.5], atol=1e-5)


def test_each_class_gives_as_many_items_as_asked():
    """Draws include every training class, all of a small one, and depend on the key alone."""
    classes_N = np.repeat([0, 2, 3], [30, 30, 2])
    drawn = draw_shots(classes_N, shots=5, key=(0, "task", 1))
    assert np.bincount(classes_N[drawn]).tolist() == [5, 0, 5, 2]
    assert len(set(drawn.tolist())) == 12
    assert np.array_equal(drawn, draw_shots(classes_N, shots=5, key=(0, "task", 1)))
    assert not np.array_equal(drawn, draw_shots(classes_N, shots=5, key=(0, "task", 2)))


def test_class_means_point_to_their_class():
    """Cosines to the mean direction; a class without items is never the nearest."""
    few_ND = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]])
    scores_NC = class_mean_scores(few_ND, np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]]), few_ND)
    mean_D = np.array([1.8, 0.6]) / np.hypot(1.8, 0.6)
    np.testing.assert_allclose(scores_NC[:, 0], few_ND @ mean_D)
    assert (scores_NC[:, 1] == -1).all()
    np.testing.assert_allclose(scores_NC[:, 2], [0, -0.6, 1])


def test_intervals_hold_the_spread_of_draws():
    """Different draws widen the interval of their mean; equal draws keep that of the test split."""
    alike, apart = np.full((20, 2000), 0.5), np.repeat(np.linspace(0, 1, 20), 2000).reshape(20, 2000)
    assert resampled_mean(alike, seed=0) == pytest.approx(np.full(2000, 0.5))
    drawn = resampled_mean(apart, seed=0)
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(apart[:, 0].std() / 20**0.5, rel=0.1)


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
    rank, separated = spectrum_of(features_ND, groups)
    assert rank == pytest.approx(float(effective_rank(features_ND)))
    assert separated == pytest.approx(float(lidar(features_ND.unflatten(0, (3, 4)))))


def test_many_rows_are_thinned_evenly():
    """A rank-one tail beyond the limit is seen."""
    rows = MAX_ROWS + 2
    features_ND = torch.zeros(rows, 2)
    features_ND[: rows // 2, 0] = 1
    features_ND[rows // 2 :, 1] = 1
    assert spectrum_of(features_ND, None) == (pytest.approx(2.0, abs=1e-3), None)
