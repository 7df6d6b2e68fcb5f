"""Metrics of events in time: beats with mir_eval's matching, chords frame by frame.

Upstream pools the counts of all slices of all tracks into one F1, so a track with many beats has more weight; protocol
clean takes the mean F1 of tracks, as usual in beat tracking.

Legend: N items (slices), T frames, C channels or classes, R resamples.
"""

import mir_eval
import numpy as np

from distributed.marble.datasets.targets import Events, Targets
from distributed.marble.metrics.beats import decode_beats
from distributed.marble.metrics.resampling import Statistics, divide, weighted_mean

TOLERANCE_S = 0.07
# batch size of upstream's test loader for chords: it averages over batches
CHORD_BATCH = 8


def event_statistics(logits_NTC: np.ndarray, targets: Targets, channel: int) -> Statistics:
    """Decodes one channel and returns the event counts, and the track number, of every slice."""
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
    counts = match_counts(_references(events, channel, frames=logits_NTC.shape[1]), estimates)
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


def _references(events: Events, channel: int, *, frames: int) -> list[np.ndarray]:
    times = [np.asarray(item[channel], dtype=np.float64) for item in events.times_s]
    if events.on_grid:
        # upstream loses an event that rounds past the last frame, and merges two events in one frame
        on_grid = [np.unique(np.round(t * events.frame_rate_hz)) for t in times]
        return [grid[grid < frames] / events.frame_rate_hz for grid in on_grid]
    return times


def pooled_f1_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the F1 of all events of all weighted items together (micro F1), [R]."""
    return divide(2 * weights_RN @ s["matched"], weights_RN @ (s["estimated"] + s["reference"]))


def track_f1_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
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


def frame_accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns the share of correct frames of weighted items, [R]."""
    return divide(weights_RN @ s["right"], weights_RN @ s["frames"])


def batch_frame_accuracy_resampled(s: Statistics, weights_RN: np.ndarray) -> np.ndarray:
    """Returns upstream's value, the mean accuracy of batches of weighted slices in manifest order, [R].

    Batches are those of the whole split and weighted by slices, not by counted frames; those without counted frames are
    excluded.
    """
    starts = np.arange(0, len(s["frames"]), CHORD_BATCH)
    right_RB = np.add.reduceat(weights_RN * s["right"], starts, axis=1)
    frames_RB = np.add.reduceat(weights_RN * s["frames"], starts, axis=1)
    slices_RB = np.add.reduceat(weights_RN, starts, axis=1)
    accuracy_RB = divide(right_RB, frames_RB)
    defined_RB = ~np.isnan(accuracy_RB)
    return divide((np.nan_to_num(accuracy_RB) * slices_RB).sum(axis=1), (slices_RB * defined_RB).sum(axis=1))
