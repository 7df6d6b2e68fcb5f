"""Metrics: the value is scikit-learn's or mir_eval's; only its resampling for intervals is ours.

A metric first turns logits and targets into per-item statistics. `exact` reads one number off them with the reference
library. `resampled` gives the same number for many weightings of the items at once, which the libraries can only do
one call at a time; tests hold it to the libraries' own `sample_weight`.

Legend: N items, C classes or outputs, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mir_eval
import numpy as np
from sklearn import metrics as sklearn_metrics

from distributed.marble.beats import decode_beats
from distributed.marble.targets import Events, Targets

TOLERANCE_S = 0.07

Statistics = dict[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One number of merit; larger is better for all of them.

    Attributes:
        statistics: (logits of the items, targets) -> arrays with one row an item.
        exact: statistics -> value.
        resampled: (statistics, weights_RN) -> values [R]; NaN where a resample has none.
    """

    name: str
    title: str
    statistics: Callable[[np.ndarray, Targets], Statistics]
    exact: Callable[[Statistics], float]
    resampled: Callable[[Statistics, np.ndarray], np.ndarray]


def _class_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    return {"predicted": logits_NC.argmax(axis=1), "target": targets.values}


def _accuracy(s: Statistics) -> float:
    return float(sklearn_metrics.accuracy_score(s["target"], s["predicted"]))


def _accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return _weighted_mean((s["target"] == s["predicted"]).astype(np.float64), weights_RN)


def _balanced_accuracy(s: Statistics) -> float:
    present = np.unique(s["target"])
    return float(
        sklearn_metrics.recall_score(s["target"], s["predicted"], labels=present, average="macro", zero_division=0)
    )


def _balanced_accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    hit_N = (s["target"] == s["predicted"]).astype(np.float64)
    recalls_CR = [_weighted_mean(hit_N, weights_RN * (s["target"] == c)) for c in np.unique(s["target"])]
    return _mean_of_defined(np.stack(recalls_CR))


def _key_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    table = key_score_table(targets.classes)
    return {"score": table[targets.values, logits_NC.argmax(axis=1)]}


@lru_cache(maxsize=4)
def key_score_table(classes: tuple[str, ...]) -> np.ndarray:
    """Returns mir_eval's weighted key score of every (reference, estimate) pair, [C, C]."""
    return np.array([[mir_eval.key.weighted_score(reference, e) for e in classes] for reference in classes])


def _mean_score(s: Statistics) -> float:
    return float(s["score"].mean())


def _mean_score_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return _weighted_mean(s["score"], weights_RN)


def _multilabel_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Keeps the classes that have both a positive and a negative item: the others have no curve."""
    positives_C = targets.values.sum(axis=0)
    kept_C = (positives_C > 0) & (positives_C < len(targets.values))
    return {"score": logits_NC[:, kept_C].astype(np.float64), "target": targets.values[:, kept_C] > 0}


def _roc_auc(s: Statistics) -> float:
    return float(sklearn_metrics.roc_auc_score(s["target"], s["score"], average="macro")) if s["score"].size else np.nan


def _roc_auc_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return _mean_of_defined(np.stack([_roc_auc_of_class(y, x, weights_RN) for y, x in _columns(s)]))


def _roc_auc_of_class(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Weight of (positive, negative) pairs in the right order; a tie counts half."""
    order = np.argsort(score_N, kind="stable")
    start_N, end_N = _tie_bounds(score_N[order])
    positive_RN = weights_RN[:, order] * target_N[order]
    negatives_RN = np.cumsum(np.pad(weights_RN[:, order] * ~target_N[order], ((0, 0), (1, 0))), axis=1)
    ordered_R = (positive_RN * (negatives_RN[:, start_N] + negatives_RN[:, end_N])).sum(axis=1) / 2
    return _divide(ordered_R, positive_RN.sum(axis=1) * negatives_RN[:, -1])


def _average_precision(s: Statistics) -> float:
    return (
        float(sklearn_metrics.average_precision_score(s["target"], s["score"], average="macro"))
        if s["score"].size
        else np.nan
    )


def _average_precision_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return _mean_of_defined(np.stack([_average_precision_of_class(y, x, weights_RN) for y, x in _columns(s)]))


def _average_precision_of_class(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Precision at each positive's threshold, averaged over the positives' weight."""
    order = np.argsort(-score_N, kind="stable")
    _, end_N = _tie_bounds(score_N[order])
    sorted_RN = weights_RN[:, order]
    positive_RN = sorted_RN * target_N[order]
    hits_RN, seen_RN = np.cumsum(positive_RN, axis=1)[:, end_N - 1], np.cumsum(sorted_RN, axis=1)[:, end_N - 1]
    precision_RN = np.divide(hits_RN, seen_RN, out=np.zeros_like(hits_RN), where=seen_RN > 0)
    return _divide((positive_RN * precision_RN).sum(axis=1), positive_RN.sum(axis=1))


def _columns(s: Statistics) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(s["target"][:, c], s["score"][:, c]) for c in range(s["score"].shape[1])]


def _tie_bounds(sorted_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each place of a sorted array where its run of equal values starts and ends (exclusive)."""
    changes = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(sorted_N)]])
    run_of_N = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    return edges[run_of_N], edges[run_of_N + 1]


def _regression_statistics(outputs_NC: np.ndarray, targets: Targets, column: int | None = None) -> Statistics:
    keep = slice(None) if column is None else slice(column, column + 1)
    return {
        "target": targets.values[:, keep].astype(np.float64),
        "predicted": outputs_NC[:, keep].astype(np.float64),
    }


def _r2(s: Statistics) -> float:
    if len(s["target"]) < 2:
        return np.nan
    return float(sklearn_metrics.r2_score(s["target"], s["predicted"], multioutput="uniform_average"))


def _r2_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    target_NC, error_NC = s["target"], (s["target"] - s["predicted"]) ** 2
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    mean_RC = weights_RN @ target_NC / total_R1
    spread_RC = weights_RN @ target_NC**2 - total_R1 * mean_RC**2
    return (1 - _divide(weights_RN @ error_NC, spread_RC)).mean(axis=1)


def _event_statistics(logits_NTC: np.ndarray, targets: Targets, channel: int) -> Statistics:
    events = targets.events
    if events is None:
        raise ValueError("event metrics need targets with event times")
    activation_NT = 1 / (1 + np.exp(-logits_NTC[:, :, channel].astype(np.float64)))
    estimates = decode_beats(
        activation_NT,
        events.frame_rate_hz,
        bpm_range=events.bpm_ranges[channel],
        decode_rate_hz=events.decode_rates_hz[channel] if events.decode_rates_hz else None,
    )
    return match_counts(_references(events, channel), estimates)


def match_counts(references: list[np.ndarray], estimates: list[np.ndarray]) -> Statistics:
    """Returns for each item how many events mir_eval matches within 70 ms, were estimated, and were annotated."""
    matched = [
        len(mir_eval.util.match_events(r, e, TOLERANCE_S)) if len(r) and len(e) else 0
        for r, e in zip(references, estimates, strict=True)
    ]
    return {
        "matched": np.array(matched, dtype=np.float64),
        "estimated": np.array([len(e) for e in estimates], dtype=np.float64),
        "reference": np.array([len(r) for r in references], dtype=np.float64),
    }


def _references(events: Events, channel: int) -> list[np.ndarray]:
    times = [np.asarray(item[channel], dtype=np.float64) for item in events.times_s]
    if events.on_grid:
        return [np.unique(np.round(t * events.frame_rate_hz)) / events.frame_rate_hz for t in times]
    return times


def _pooled_f1(s: Statistics) -> float:
    return float(_pooled_f1_resampled(s, np.ones((1, len(s["matched"]))))[0])


def _pooled_f1_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return _divide(2 * weights_RN @ s["matched"], weights_RN @ (s["estimated"] + s["reference"]))


def _weighted_mean(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    return _divide(weights_RN @ values_N, weights_RN.sum(axis=1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 1e-12)


def _mean_of_defined(values_CR: np.ndarray) -> np.ndarray:
    """Returns the mean over classes that a resample holds; NaN where it holds none."""
    defined_CR = ~np.isnan(values_CR)
    return _divide(np.where(defined_CR, values_CR, 0.0).sum(axis=0), defined_CR.sum(axis=0).astype(np.float64))


def _of(function: Callable[..., Statistics], **fixed: Any) -> Callable[[np.ndarray, Targets], Statistics]:
    return lambda logits, targets: function(logits, targets, **fixed)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "accuracy", _class_statistics, _accuracy, _accuracy_resampled),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            _class_statistics,
            _balanced_accuracy,
            _balanced_accuracy_resampled,
        ),
        Metric("key_weighted", "weighted key score", _key_statistics, _mean_score, _mean_score_resampled),
        Metric("roc_auc", "ROC-AUC, macro", _multilabel_statistics, _roc_auc, _roc_auc_resampled),
        Metric(
            "average_precision",
            "average precision, macro",
            _multilabel_statistics,
            _average_precision,
            _average_precision_resampled,
        ),
        Metric("r2", "R², mean of outputs", _regression_statistics, _r2, _r2_resampled),
        Metric("r2_first", "R², first output", _of(_regression_statistics, column=0), _r2, _r2_resampled),
        Metric("r2_second", "R², second output", _of(_regression_statistics, column=1), _r2, _r2_resampled),
        Metric("beat_f1", "beat F1, 70 ms", _of(_event_statistics, channel=0), _pooled_f1, _pooled_f1_resampled),
        Metric(
            "downbeat_f1", "downbeat F1, 70 ms", _of(_event_statistics, channel=1), _pooled_f1, _pooled_f1_resampled
        ),
    )
}
