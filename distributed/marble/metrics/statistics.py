"""Statistics of items, and the values of weighted items: resampling, tags, beats and chords.

The bootstrap draws whole units: pieces, not takes or slices. Takes of one piece share its notes, so resampling takes
would overstate the evidence. All encoders of a task have the same resamples, which makes their differences paired.

Tags: a class without positive items has no curve, one without negative items no ROC curve. Protocol clean excludes such
classes from the mean. MARBLE v2's library counts them as 0 (`roc_auc_all`, `average_precision_all`).

Beats: upstream pools the counts of all slices of all tracks into one F1, so a track with many beats has more weight;
protocol clean takes the mean F1 of tracks, as usual in beat tracking.

Legend: N items (slices), T frames, C classes or channels, R resamples.
"""

from collections.abc import Callable, Sequence

import mir_eval
import numpy as np
import torch

from distributed.marble.datasets.targets import Events, Targets
from distributed.marble.metrics.beats import decode_beats
from pupujepa.randomness import generator

LEVEL = 0.95

Statistics = dict[str, np.ndarray]
# (target_N, score_N, weights_RN) of one class -> [R]; NaN where it is not defined
Curve = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
TOLERANCE_S = 0.07
# batch size of upstream's test loader for chords: it averages over batches
CHORD_BATCH = 8


def resample_weights(units: Sequence[str], *, resamples: int, seed: int) -> np.ndarray:
    """Returns the number of times each item is drawn, [R, N], if whole units are drawn with replacement."""
    names, unit_of_item_N = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    draws_RU = generator(seed, "bootstrap", len(names)).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    return draws_RU[:, unit_of_item_N].astype(np.float64)  # items of a unit share its count


def central_interval(values_R: np.ndarray) -> tuple[float, float]:
    """Returns the central 95 % interval of resampled values, without NaN."""
    low, high = np.nanquantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def weighted_mean(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the mean of [N] under each weighting, [R]."""
    return divide(weights_RN @ values_N, weights_RN.sum(axis=1))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient; NaN if the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 1e-12)


def mean_of_defined(values_CR: np.ndarray) -> np.ndarray:
    """Returns the mean over the classes defined in each resample, [R]; NaN without any."""
    defined_CR = ~np.isnan(values_CR)
    return divide(np.where(defined_CR, values_CR, 0.0).sum(axis=0), defined_CR.sum(axis=0).astype(np.float64))


def curve_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns scores and targets of the classes with both positive and negative items."""
    positives_C = targets.values.sum(axis=0)
    kept_C = (positives_C > 0) & (positives_C < len(targets.values))
    return {"score": logits_NC[:, kept_C].astype(np.float64), "target": targets.values[:, kept_C] > 0}


def all_class_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns scores and targets of all classes."""
    return {"score": logits_NC.astype(np.float64), "target": targets.values > 0}


def mean_of_curves(curve: Curve, s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the mean over the classes that are defined in each resample, [R]; NaN without any."""
    return mean_of_defined(_curves(curve, s, weights_RN))


def mean_of_all_curves(curve: Curve, s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the mean over all classes, [R]; undefined ones count as 0."""
    return np.nan_to_num(_curves(curve, s, weights_RN)).mean(axis=0)


def roc_auc(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the weighted share of (positive, negative) pairs in the right order, [R]; ties are half."""
    order = np.argsort(score_N, kind="stable")
    start_N, end_N = _tie_bounds(score_N[order])  # of the tie that each item is in
    positive_RN = weights_RN[:, order] * target_N[order]
    # negatives_RN[:, i] is the weight of negatives before place i
    negatives_RN = np.cumsum(np.pad(weights_RN[:, order] * ~target_N[order], ((0, 0), (1, 0))), axis=1)
    # the mean of those before and up to the tie: tied negatives count half
    ordered_R = (positive_RN * (negatives_RN[:, start_N] + negatives_RN[:, end_N])).sum(axis=1) / 2
    return divide(ordered_R, positive_RN.sum(axis=1) * negatives_RN[:, -1])


def average_precision(target_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the precision at each positive's threshold, averaged by the positives' weights, [R]."""
    order = np.argsort(-score_N, kind="stable")
    _, end_N = _tie_bounds(score_N[order])
    sorted_RN = weights_RN[:, order]
    positive_RN = sorted_RN * target_N[order]
    # threshold at the end of the tie, so that tied items share a precision
    hits_RN, seen_RN = np.cumsum(positive_RN, axis=1)[:, end_N - 1], np.cumsum(sorted_RN, axis=1)[:, end_N - 1]
    precision_RN = np.divide(hits_RN, seen_RN, out=np.zeros_like(hits_RN), where=seen_RN > 0)
    return divide((positive_RN * precision_RN).sum(axis=1), positive_RN.sum(axis=1))


def decision_statistics(logits_NC: np.ndarray, targets: Targets) -> Statistics:
    """Returns decisions (probability above one half) and targets of all classes."""
    return {"decided": logits_NC > 0, "target": targets.values > 0}


def f1(s: Statistics, weights_RN: np.ndarray, *, macro: bool) -> np.ndarray:
    """Returns the F1 of all decisions together, or the mean of classes, [R]; 0 where nothing is there."""
    hits_RC = weights_RN @ (s["decided"] & s["target"]).astype(np.float64)
    sizes_RC = weights_RN @ (s["decided"].astype(np.float64) + s["target"])
    if macro:
        return np.nan_to_num(divide(2 * hits_RC, sizes_RC)).mean(axis=1)
    return np.nan_to_num(divide(2 * hits_RC.sum(axis=1), sizes_RC.sum(axis=1)))


def _curves(curve: Curve, s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    classes = [curve(y, x, weights_RN) for y, x in zip(s["target"].T, s["score"].T, strict=True)]
    return np.stack(classes) if classes else np.empty((0, len(weights_RN)))  # [C, R]


def _tie_bounds(sorted_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and (exclusive) end of the run of equal values at each place of a sorted array."""
    changes = np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(sorted_N)]])
    run_of_N = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    return edges[run_of_N], edges[run_of_N + 1]


def event_statistics(logits_NTC: np.ndarray, targets: Targets, channel: int) -> Statistics:
    """Decodes one channel and returns the event counts, and the track number, of every slice."""
    events = targets.events
    if events is None:
        raise ValueError("event metrics need targets with event times")
    activation_NT = 1 / (1 + np.exp(-logits_NTC[:, :, channel].astype(np.float64)))
    if events.label_frames is not None:  # upstream decodes the bf16 probabilities of its autocast
        activation_NT = torch.from_numpy(activation_NT).bfloat16().double().numpy()
    estimates = decode_beats(
        activation_NT,
        events.frame_rate_hz,
        bpm_range=events.bpm_ranges[channel],
        decode_rate_hz=events.decode_rates_hz[channel] if events.decode_rates_hz else None,
    )
    counts = match_counts(_references(events, channel), estimates)
    return counts if events.track_of_item is None else counts | {"track": events.track_of_item}


def match_counts(references: list[np.ndarray], estimates: list[np.ndarray]) -> Statistics:
    """Returns the number of matched (mir_eval, 70 ms), estimated and reference events of each item."""
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
    if events.label_frames is None:
        return times
    # upstream loses an event that rounds past the last frame, and merges two events in one frame
    on_grid = [np.unique(np.round(t * events.frame_rate_hz)) for t in times]
    return [grid[grid < events.label_frames] / events.frame_rate_hz for grid in on_grid]


def pooled_f1(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the F1 of all events of all weighted items together (micro F1), [R]."""
    return divide(2 * weights_RN @ s["matched"], weights_RN @ (s["estimated"] + s["reference"]))


def track_f1(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the weighted mean F1 of tracks with events, [R]; slices of a track must have equal weights."""
    _, first, track_N = np.unique(s["track"], return_index=True, return_inverse=True)
    matched_K, events_K = np.bincount(track_N, s["matched"]), np.bincount(track_N, s["estimated"] + s["reference"])
    f1_K = divide(2 * matched_K, events_K)
    defined_K = ~np.isnan(f1_K)
    # a track has the weight of its first slice
    return weighted_mean(f1_K[defined_K], weights_RN[:, first[defined_K]])


def chord_statistics(logits_NTC: np.ndarray, targets: Targets) -> Statistics:
    """Returns the number of frames with a class, and of correct ones, for every slice."""
    counted_NT = targets.values >= 0
    right_NT = (logits_NTC.argmax(axis=-1) == targets.values) & counted_NT
    return {"right": right_NT.sum(axis=1).astype(np.float64), "frames": counted_NT.sum(axis=1).astype(np.float64)}


def frame_accuracy(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the share of correct frames of weighted items, [R]."""
    return divide(weights_RN @ s["right"], weights_RN @ s["frames"])


def batch_frame_accuracy(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns upstream's value, the mean accuracy of batches of weighted slices in manifest order, [R].

    Batches are those of the whole split and weighted by slices, not by counted frames; one without counted frames is 0.
    """
    starts = np.arange(0, len(s["frames"]), CHORD_BATCH)
    right_RB = np.add.reduceat(weights_RN * s["right"], starts, axis=1)
    frames_RB = np.add.reduceat(weights_RN * s["frames"], starts, axis=1)
    slices_RB = np.add.reduceat(weights_RN, starts, axis=1)
    accuracy_RB = np.nan_to_num(divide(right_RB, frames_RB))
    return divide((accuracy_RB * slices_RB).sum(axis=1), slices_RB.sum(axis=1))
