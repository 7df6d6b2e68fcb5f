"""Label-light checks of clip features: cosine nearest neighbours, and class means of a few labelled items.

Nothing is trained. Rows are features centred and scaled with the training split, whose labels that does not need, so
that encoders of any scale can be compared by angles.

Legend: N items, D width, C classes, K numbers of neighbours, R resamples.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from pupujepa.randomness import generator

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
SHOTS = (1, 5, 10, 20)
DRAWS = 20
# of the exponential that weighs neighbours by their cosine, as in DINO's evaluation (arXiv 2104.14294)
TEMPERATURE = 0.07
_SHORTEST = 1e-6


def neighbour_counts(items: int) -> tuple[int, ...]:
    """Returns the numbers of neighbours that a training split of so many items has."""
    return tuple(k for k in NEIGHBOURS if k <= items)


def knn_scores(train_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the weighted share of each class among the nearest training items, for every number of them: [K, N, C].

    Args:
        train_ND, asked_ND: rows of length 1.
        labels_NC: of the training items, 0 or 1; one column is 1 where classes exclude each other.
    """
    counts = neighbour_counts(len(train_ND))
    search = NearestNeighbors(n_neighbors=counts[-1], metric="cosine", algorithm="brute").fit(train_ND)
    distance_Nk, index_Nk = search.kneighbors(asked_ND)
    weight_Nk = np.exp((distance_Nk[:, :1] - distance_Nk) / TEMPERATURE)
    votes_kNC = np.cumsum(np.swapaxes(weight_Nk[:, :, None] * labels_NC[index_Nk], 0, 1), axis=0)
    total_kN = np.cumsum(weight_Nk.T, axis=0)
    places = [k - 1 for k in counts]
    return votes_kNC[places] / total_kN[places][:, :, None]


def draw_shots(classes_N: np.ndarray, *, shots: int, key: tuple[int | str, ...]) -> np.ndarray:
    """Returns the rows of `shots` random items of every class, of all it has where it has fewer.

    Args:
        key: of the draw; equal keys draw the same items for every encoder.
    """
    order_N = generator(*key, shots).permutation(len(classes_N))
    drawn = [order_N[classes_N[order_N] == c][:shots] for c in np.unique(classes_N)]
    return np.concatenate(drawn)


def class_mean_scores(few_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the cosine of every item to the mean of each class of a few items, [N, C]; -1 for an empty class."""
    counts_C = labels_NC.sum(axis=0)
    means_CD = labels_NC.T @ few_ND / np.maximum(counts_C, 1)[:, None]
    means_CD /= np.maximum(np.linalg.norm(means_CD, axis=1, keepdims=True), _SHORTEST)
    return np.where(counts_C > 0, asked_ND @ means_CD.T, -1.0)


def resampled_mean(values_VR: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the mean over draws V of labelled items, the draws resampled too, [R].

    Args:
        values_VR: of each draw, on each resample of the test split.
    """
    draws, resamples = values_VR.shape
    weights_RV = generator(seed, "few-shot draws", draws).multinomial(draws, np.full(draws, 1 / draws), size=resamples)
    return (weights_RV.T * values_VR).sum(axis=0) / draws
