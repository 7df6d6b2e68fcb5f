"""Metrics of tags: ROC-AUC, average precision and F1, over the defined classes or over all.

A class without positive items has no curve, one without negative items no ROC curve. Protocol clean excludes such
classes from the mean. MARBLE v2's library counts them as 0 (`roc_auc_all`, `average_precision_all`).

Legend: N items, C classes, R resamples.
"""

import numpy as np
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Targets
from distributed.marble.metrics.resampling import Statistics, divide, mean_of_defined


def curve_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns scores and targets of the classes with both positive and negative items.

    Other classes have no curve.
    """
    positives_C = targets.values.sum(axis=0)
    kept_C = (positives_C > 0) & (positives_C < len(targets.values))
    return {"score": logits_NC[:, kept_C].astype(np.float64), "target": targets.values[:, kept_C] > 0}


def roc_auc(s: Statistics) -> float:
    """Returns scikit-learn's macro ROC-AUC; NaN without a class."""
    return float(sklearn_metrics.roc_auc_score(s["target"], s["score"], average="macro")) if s["score"].size else np.nan


def roc_auc_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns `roc_auc` of weighted items, [R]."""
    return mean_of_defined(np.stack([_roc_auc_of_class(y, x, weights_RN) for y, x in _columns(s)]))


def _roc_auc_of_class(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the weighted share of (positive, negative) pairs in the right order, [R]; ties are half."""
    order = np.argsort(score_N, kind="stable")
    start_N, end_N = _tie_bounds(score_N[order])  # of the tie that each item is in
    positive_RN = weights_RN[:, order] * target_N[order]
    # negatives_RN[:, i] is the weight of negatives before place i
    negatives_RN = np.cumsum(np.pad(weights_RN[:, order] * ~target_N[order], ((0, 0), (1, 0))), axis=1)
    # the mean of those before and up to the tie: tied negatives count half
    ordered_R = (positive_RN * (negatives_RN[:, start_N] + negatives_RN[:, end_N])).sum(axis=1) / 2
    return divide(ordered_R, positive_RN.sum(axis=1) * negatives_RN[:, -1])


def average_precision(s: Statistics) -> float:
    """Returns scikit-learn's macro average precision; NaN without a class."""
    return (
        float(sklearn_metrics.average_precision_score(s["target"], s["score"], average="macro"))
        if s["score"].size
        else np.nan
    )


def average_precision_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns `average_precision` of weighted items, [R]."""
    return mean_of_defined(np.stack([_average_precision_of_class(y, x, weights_RN) for y, x in _columns(s)]))


def _average_precision_of_class(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the precision at each positive's threshold, averaged by the positives' weights, [R]."""
    order = np.argsort(-score_N, kind="stable")
    _, end_N = _tie_bounds(score_N[order])
    sorted_RN = weights_RN[:, order]
    positive_RN = sorted_RN * target_N[order]
    # threshold at the end of the tie, so that tied items share a precision
    hits_RN, seen_RN = np.cumsum(positive_RN, axis=1)[:, end_N - 1], np.cumsum(sorted_RN, axis=1)[:, end_N - 1]
    precision_RN = np.divide(hits_RN, seen_RN, out=np.zeros_like(hits_RN), where=seen_RN > 0)
    return divide((positive_RN * precision_RN).sum(axis=1), positive_RN.sum(axis=1))


def all_class_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns scores and targets of all classes."""
    return {"score": logits_NC.astype(np.float64), "target": targets.values > 0}


def roc_auc_all_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns macro ROC-AUC of weighted items over all classes, [R]; undefined classes count as 0."""
    return np.nan_to_num(np.stack([_roc_auc_of_class(y, x, weights_RN) for y, x in _columns(s)])).mean(axis=0)


def average_precision_all_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns macro average precision of weighted items over all classes, [R].

    Undefined classes count as 0.
    """
    return np.nan_to_num(np.stack([_average_precision_of_class(y, x, weights_RN) for y, x in _columns(s)])).mean(axis=0)


def decision_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns decisions (probability above one half) and targets of all classes."""
    return {"decided": logits_NC > 0, "target": targets.values > 0}


def f1_macro(s: Statistics) -> float:
    """Returns scikit-learn's macro F1 of all classes; absent classes without decisions count as 0."""
    return float(sklearn_metrics.f1_score(s["target"], s["decided"], average="macro", zero_division=0))


def f1_macro_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns `f1_macro` of weighted items, [R]."""
    hits_RC, sizes_RC = _hits_and_sizes(s, weights_RN)
    return np.nan_to_num(divide(2 * hits_RC, sizes_RC)).mean(axis=1)


def f1_micro(s: Statistics) -> float:
    """Returns scikit-learn's F1 of all decisions together."""
    return float(sklearn_metrics.f1_score(s["target"], s["decided"], average="micro", zero_division=0))


def f1_micro_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns `f1_micro` of weighted items, [R]."""
    hits_RC, sizes_RC = _hits_and_sizes(s, weights_RN)
    return np.nan_to_num(divide(2 * hits_RC.sum(axis=1), sizes_RC.sum(axis=1)))


def _hits_and_sizes(s: Statistics, weights_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hits_NC = (s["decided"] & s["target"]).astype(np.float64)
    sizes_NC = s["decided"].astype(np.float64) + s["target"]
    return weights_RN @ hits_NC, weights_RN @ sizes_NC


def _columns(s: Statistics) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(s["target"][:, c], s["score"][:, c]) for c in range(s["score"].shape[1])]


def _tie_bounds(sorted_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and (exclusive) end of the run of equal values at each place of a sorted array."""
    changes = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(sorted_N)]])
    run_of_N = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    return edges[run_of_N], edges[run_of_N + 1]
