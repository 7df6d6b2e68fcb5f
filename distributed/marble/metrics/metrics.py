"""Metrics: values come from scikit-learn and mir_eval; only the resampling for intervals is ours.

A metric first computes per-item statistics from logits and targets. `exact` computes the value from them with the
reference library. `resampled` computes it for many weightings of the items at once, where the libraries need one call
each; tests compare it with the libraries' `sample_weight`.

Legend: N items, C classes or outputs, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import mir_eval
import numpy as np
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Targets
from distributed.marble.metrics import events, tags
from distributed.marble.metrics.resampling import Statistics, divide, mean_of_defined, unweighted, weighted_mean


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


def _balanced_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
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
    mean_RC = weights_RN @ target_NC / total_R1  # weighted mean of each resample
    spread_RC = weights_RN @ target_NC**2 - total_R1 * mean_RC**2  # total sum of squares
    return (1 - divide(weights_RN @ error_NC, spread_RC)).mean(axis=1)


def _ours(name: str, title: str, statistics: Callable[..., Statistics], resampled: Callable[..., np.ndarray]) -> Metric:
    """Returns a metric that no library has: its value is the resampled one with equal weights."""
    return Metric(name, title, statistics, partial(unweighted, resampled), resampled)


_BEATS = (
    ("f1", "F1, 70 ms", events.pooled_f1_resampled),
    ("f1_tracks", "F1, 70 ms, mean of tracks", events.track_f1_resampled),
)
# their order is that of extra metrics in tables
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "accuracy", _class_statistics, _accuracy, _accuracy_resampled),
        Metric("balanced_accuracy", "balanced accuracy", _class_statistics, _balanced_accuracy, _balanced_resampled),
        Metric("key_weighted", "weighted key score", _key_statistics, _mean_score, _mean_score_resampled),
        Metric("roc_auc", "ROC-AUC, macro", tags.curve_statistics, tags.roc_auc, tags.roc_auc_resampled),
        Metric(
            "average_precision",
            "average precision, macro",
            tags.curve_statistics,
            tags.average_precision,
            tags.average_precision_resampled,
        ),
        _ours("roc_auc_all", "ROC-AUC, macro, empty classes 0", tags.all_class_statistics, tags.roc_auc_all_resampled),
        _ours(
            "average_precision_all",
            "average precision, macro, empty classes 0",
            tags.all_class_statistics,
            tags.average_precision_all_resampled,
        ),
        Metric("f1_macro", "F1, macro", tags.decision_statistics, tags.f1_macro, tags.f1_macro_resampled),
        Metric("f1_micro", "F1, micro", tags.decision_statistics, tags.f1_micro, tags.f1_micro_resampled),
        Metric("r2", "R², mean of outputs", _regression_statistics, _r2, _r2_resampled),
        *(
            Metric(f"r2_{name}", f"R², {title}", partial(_regression_statistics, column=column), _r2, _r2_resampled)
            for name, title, column in (
                ("first", "first output", 0),
                ("second", "second output", 1),
                ("arousal", "arousal", 0),
                ("valence", "valence", 1),
            )
        ),
        *(
            _ours(f"{kind}_{name}", f"{kind} {title}", partial(events.event_statistics, channel=channel), resampled)
            for name, title, resampled in _BEATS
            for channel, kind in enumerate(("beat", "downbeat"))
        ),
        _ours("frame_accuracy", "frame accuracy", events.chord_statistics, events.frame_accuracy_resampled),
        _ours(
            "frame_accuracy_batches",
            "frame accuracy, mean of batches",
            events.chord_statistics,
            events.batch_frame_accuracy_resampled,
        ),
    )
}
