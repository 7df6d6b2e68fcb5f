"""Checks of clip features with few labels: cosine nearest neighbours, class means of few items.

Nothing is trained. Features are centred and scaled with statistics of the training split (not its labels), so that
angles are comparable between encoders of any scale.

Legend: N items, D width, C classes, K numbers of neighbours, R resamples.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from pupujepa.randomness import generator

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
SHOTS = (1, 5, 10, 20)
DRAWS = 20
# neighbours have weight exp(cosine / temperature), as in DINO's evaluation (arXiv 2104.14294)
TEMPERATURE = 0.07
_SHORTEST = 1e-6


def neighbour_counts(items: int) -> tuple[int, ...]:
    """Returns the numbers of neighbours to try with `items` training items."""
    return tuple(k for k in NEIGHBOURS if k <= items)


def knn_scores(train_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the weighted share of each class among the nearest training items, [K, N, C].

    K counts the numbers of neighbours.

    Args:
        train_ND, asked_ND: rows of norm 1.
        labels_NC: 0/1 labels of the training items.
    """
    counts = neighbour_counts(len(train_ND))
    search = NearestNeighbors(n_neighbors=counts[-1], metric="cosine", algorithm="brute").fit(train_ND)
    distance_Nk, index_Nk = search.kneighbors(asked_ND)
    # relative to the nearest one, which avoids overflow and cancels in the shares
    weight_Nk = np.exp((distance_Nk[:, :1] - distance_Nk) / TEMPERATURE)
    votes_kNC = np.cumsum(np.swapaxes(weight_Nk[:, :, None] * labels_NC[index_Nk], 0, 1), axis=0)
    total_kN = np.cumsum(weight_Nk.T, axis=0)
    rows = [k - 1 for k in counts]
    return votes_kNC[rows] / total_kN[rows][:, :, None]


def draw_shots(classes_N: np.ndarray, *, shots: int, key: tuple[int | str, ...]) -> np.ndarray:
    """Returns the rows of `shots` random items of every class, or of all if it has fewer.

    Args:
        key: key of the draw; equal keys draw the same items for every encoder.
    """
    order_N = generator(*key, shots).permutation(len(classes_N))
    drawn = [order_N[classes_N[order_N] == c][:shots] for c in np.unique(classes_N)]
    return np.concatenate(drawn)


def class_mean_scores(few_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the cosine between every item and the mean of each class, [N, C]; -1 for an empty class."""
    counts_C = labels_NC.sum(axis=0)
    means_CD = labels_NC.T @ few_ND / np.maximum(counts_C, 1)[:, None]
    means_CD /= np.maximum(np.linalg.norm(means_CD, axis=1, keepdims=True), _SHORTEST)
    return np.where(counts_C > 0, asked_ND @ means_CD.T, -1.0)


def resampled_mean(values_VR: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the mean over draws V of labelled items, with the draws resampled too, [R].

    Args:
        values_VR: value of each draw on each resample of the test split.
    """
    draws, resamples = values_VR.shape
    weights_RV = generator(seed, "few-shot draws", draws).multinomial(draws, np.full(draws, 1 / draws), size=resamples)
    return (weights_RV.T * values_VR).sum(axis=0) / draws
