"""Metrics: values come from scikit-learn and mir_eval; only the resampling for intervals is ours.

A metric first computes per-item statistics from logits and targets. `exact` computes the value from them with the
reference library. `resampled` computes it for many weightings of the items at once, where the libraries need one call
each; tests compare it with the libraries' `sample_weight`.

Legend: N items, C classes or outputs, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mir_eval
import numpy as np
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Targets
from distributed.marble.metrics import events as event_metrics
from distributed.marble.metrics import tags as tag_metrics
from distributed.marble.metrics.resampling import Statistics, divide, mean_of_defined, weighted_mean


@dataclass(frozen=True)
class Metric:
    """A metric; larger is better.

    Attributes:
        statistics: (logits of the items, targets) -> arrays with one row per item.
        exact: statistics -> value.
        resampled: (statistics, weights_RN) -> values [R]; NaN for undefined ones.
    """

    name: str
    title: str
    statistics: Callable[[np.ndarray, Targets], Statistics]
    exact: Callable[[Statistics], float]
    resampled: Callable[[Statistics, np.ndarray], np.ndarray]

    def score(self, logits: np.ndarray, targets: Targets) -> float:
        """Returns the value for the logits of items; NaN if it is undefined."""
        return self.exact(self.statistics(logits, targets))


def _class_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    return {"predicted": logits_NC.argmax(axis=1), "target": targets.values}


def _accuracy(s: Statistics) -> float:
    return float(sklearn_metrics.accuracy_score(s["target"], s["predicted"]))


def _accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return weighted_mean((s["target"] == s["predicted"]).astype(np.float64), weights_RN)


def _balanced_accuracy(s: Statistics) -> float:
    present = np.unique(s["target"])
    return float(
        sklearn_metrics.recall_score(s["target"], s["predicted"], labels=present, average="macro", zero_division=0)
    )


def _balanced_accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    hit_N = (s["target"] == s["predicted"]).astype(np.float64)
    recalls_CR = [weighted_mean(hit_N, weights_RN * (s["target"] == c)) for c in np.unique(s["target"])]
    return mean_of_defined(np.stack(recalls_CR))


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
    return weighted_mean(s["score"], weights_RN)


def _regression_statistics(outputs_NC: np.ndarray, targets: Targets, column: int | None = None) -> Statistics:
    keep = slice(None) if column is None else slice(column, column + 1)
    return {
        "target": targets.values[:, keep].astype(np.float64),
        "predicted": outputs_NC[:, keep].astype(np.float64),
    }


def _r2(s: Statistics) -> float:
    if len(s["target"]) < 2:  # scikit-learn warns and returns NaN
        return np.nan
    return float(sklearn_metrics.r2_score(s["target"], s["predicted"], multioutput="uniform_average"))


def _r2_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    target_NC, error_NC = s["target"], (s["target"] - s["predicted"]) ** 2
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    mean_RC = weights_RN @ target_NC / total_R1
    spread_RC = weights_RN @ target_NC**2 - total_R1 * mean_RC**2
    return (1 - divide(weights_RN @ error_NC, spread_RC)).mean(axis=1)


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
        Metric(
            "roc_auc",
            "ROC-AUC, macro",
            tag_metrics.curve_statistics,
            tag_metrics.roc_auc,
            tag_metrics.roc_auc_resampled,
        ),
        Metric(
            "average_precision",
            "average precision, macro",
            tag_metrics.curve_statistics,
            tag_metrics.average_precision,
            tag_metrics.average_precision_resampled,
        ),
        Metric(
            "roc_auc_all",
            "ROC-AUC, macro, empty classes 0",
            tag_metrics.all_class_statistics,
            tag_metrics.roc_auc_all,
            tag_metrics.roc_auc_all_resampled,
        ),
        Metric(
            "average_precision_all",
            "average precision, macro, empty classes 0",
            tag_metrics.all_class_statistics,
            tag_metrics.average_precision_all,
            tag_metrics.average_precision_all_resampled,
        ),
        Metric(
            "f1_macro",
            "F1, macro",
            tag_metrics.decision_statistics,
            tag_metrics.f1_macro,
            tag_metrics.f1_macro_resampled,
        ),
        Metric(
            "f1_micro",
            "F1, micro",
            tag_metrics.decision_statistics,
            tag_metrics.f1_micro,
            tag_metrics.f1_micro_resampled,
        ),
        Metric("r2", "R², mean of outputs", _regression_statistics, _r2, _r2_resampled),
        Metric("r2_first", "R², first output", _of(_regression_statistics, column=0), _r2, _r2_resampled),
        Metric("r2_second", "R², second output", _of(_regression_statistics, column=1), _r2, _r2_resampled),
        Metric("r2_arousal", "R², arousal", _of(_regression_statistics, column=0), _r2, _r2_resampled),
        Metric("r2_valence", "R², valence", _of(_regression_statistics, column=1), _r2, _r2_resampled),
        *(
            Metric(
                f"{name}_f1{suffix}",
                f"{name} F1, 70 ms{how}",
                _of(event_metrics.event_statistics, channel=channel),
                exact,
                resampled,
            )
            for suffix, how, exact, resampled in (
                ("", "", event_metrics.pooled_f1, event_metrics.pooled_f1_resampled),
                ("_tracks", ", mean of tracks", event_metrics.track_f1, event_metrics.track_f1_resampled),
            )
            for channel, name in enumerate(("beat", "downbeat"))
        ),
        Metric(
            "frame_accuracy",
            "frame accuracy",
            event_metrics.chord_statistics,
            event_metrics.frame_accuracy,
            event_metrics.frame_accuracy_resampled,
        ),
        Metric(
            "frame_accuracy_batches",
            "frame accuracy, mean of batches",
            event_metrics.chord_statistics,
            event_metrics.batch_frame_accuracy,
            event_metrics.batch_frame_accuracy_resampled,
        ),
    )
}
