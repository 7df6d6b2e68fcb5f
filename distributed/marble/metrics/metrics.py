"""Metrics, each a function of weighted items: equal weights give the value, resamples its interval.

A metric first computes per-item statistics from logits and targets; with the weight that each item has in each resample
it then gives the values of all resamples at once, where libraries need one call each. Tests hold every metric to
scikit-learn (with `sample_weight`) or to mir_eval, whose key scores and matching of beats are used here.

Legend: N items, C classes or outputs, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import mir_eval
import numpy as np
from sklearn.metrics import r2_score

from distributed.marble.datasets.targets import Targets
from distributed.marble.metrics import statistics as stats
from distributed.marble.metrics.statistics import Statistics, divide, mean_of_defined, weighted_mean


@dataclass(frozen=True)
class Metric:
    """A metric; larger is better."""

    name: str
    title: str
    statistics: Callable[[np.ndarray, Targets], Statistics]  # (logits of the items, targets) -> one row per item
    resampled: Callable[[Statistics, np.ndarray], np.ndarray]  # weights_RN -> values [R]; NaN for undefined ones
    library: Callable[[Statistics], float] | None = None  # gives the value where equal weights do not give it exactly

    def exact(self, s: Statistics) -> float:
        """Returns the value, in which every item counts once; NaN if it is undefined."""
        if self.library:
            return self.library(s)
        items = len(next(iter(s.values())))
        return float(self.resampled(s, np.ones((1, items)))[0])

    def score(self, logits: np.ndarray, targets: Targets) -> float:
        """Returns the value for the logits of items."""
        return self.exact(self.statistics(logits, targets))


def _class_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    return {"predicted": logits_NC.argmax(axis=1), "target": targets.values}


def _accuracy(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    return weighted_mean((s["target"] == s["predicted"]).astype(np.float64), weights_RN)


def _balanced_accuracy(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
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


def _regression_statistics(outputs_NC: np.ndarray, targets: Targets, column: int | None = None) -> Statistics:
    keep = slice(None) if column is None else slice(column, column + 1)
    return {
        "target": targets.values[:, keep].astype(np.float64),
        "predicted": outputs_NC[:, keep].astype(np.float64),
    }


def _r2(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    target_NC, error_NC = s["target"], (s["target"] - s["predicted"]) ** 2
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    mean_RC = weights_RN @ target_NC / total_R1  # weighted mean of each resample
    spread_RC = weights_RN @ target_NC**2 - total_R1 * mean_RC**2  # total sum of squares
    return (1 - divide(weights_RN @ error_NC, spread_RC)).mean(axis=1)


def _r2_of_library(s: Statistics) -> float:
    if len(s["target"]) < 2:  # scikit-learn warns and returns NaN
        return np.nan
    return float(r2_score(s["target"], s["predicted"], multioutput="uniform_average"))


def _metrics() -> tuple[Metric, ...]:
    """Returns all metrics; their order is that of extra metrics in tables."""
    auc, ap = "ROC-AUC, macro", "average precision, macro"
    every, curves, decisions = stats.all_class_statistics, stats.curve_statistics, stats.decision_statistics
    found = [
        Metric("accuracy", "accuracy", _class_statistics, _accuracy),
        Metric("balanced_accuracy", "balanced accuracy", _class_statistics, _balanced_accuracy),
        Metric("key_weighted", "weighted key score", _key_statistics, lambda s, w_RN: weighted_mean(s["score"], w_RN)),
        Metric("roc_auc", auc, curves, partial(stats.mean_of_curves, stats.roc_auc)),
        Metric("average_precision", ap, curves, partial(stats.mean_of_curves, stats.average_precision)),
    ]
    for name, title, curve in (("roc_auc", auc, stats.roc_auc), ("average_precision", ap, stats.average_precision)):
        mean = partial(stats.mean_of_all_curves, curve)
        found.append(Metric(f"{name}_all", f"{title}, empty classes 0", every, mean))
    for average in ("macro", "micro"):
        found.append(Metric(f"f1_{average}", f"F1, {average}", decisions, partial(stats.f1, macro=average == "macro")))
    outputs = (("first", "first output", 0), ("second", "second output", 1), ("arousal", "arousal", 0))
    for name, title, column in (("", "mean of outputs", None), *outputs, ("valence", "valence", 1)):
        statistics = partial(_regression_statistics, column=column)
        found.append(Metric(f"r2_{name}".rstrip("_"), f"R², {title}", statistics, _r2, _r2_of_library))
    for name, title, f1 in (
        ("f1", "F1, 70 ms", stats.pooled_f1),
        ("f1_tracks", "F1, 70 ms, mean of tracks", stats.track_f1),
    ):
        for channel, kind in enumerate(("beat", "downbeat")):
            statistics = partial(stats.event_statistics, channel=channel)
            found.append(Metric(f"{kind}_{name}", f"{kind} {title}", statistics, f1))
    frames = "frame accuracy"
    return (
        *found,
        Metric("frame_accuracy", frames, stats.chord_statistics, stats.frame_accuracy),
        Metric(
            "frame_accuracy_batches", f"{frames}, mean of batches", stats.chord_statistics, stats.batch_frame_accuracy
        ),
    )


METRICS: dict[str, Metric] = {m.name: m for m in _metrics()}
