"""Beats from beat activations, decoded offline.

The bar-pointer model is that of Krebs, Böck and Widmer (ISMIR 2015). The hidden state is (beat interval, position
within it). Inside a beat the position advances by one; at its end the interval may change, and larger relative changes
are less likely (lambda 100). A beat is observed in the first 1/16 of an interval. Viterbi decodes many clips at once,
because validation scores every (layer, learning rate) on every clip.

Constants are those of the DBN that MARBLE ships: 55-215 bpm, transition lambda 100, observation lambda 16.

Legend: B clips, T frames, S states, I beat intervals.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BEATS_BPM = (55.0, 215.0)
TRANSITION_LAMBDA = 100.0
OBSERVATION_LAMBDA = 16
CLIPS_PER_PASS = 512
_SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class BeatSpace:
    """States in order of interval, then position."""

    intervals_I: np.ndarray  # frames in a beat
    first_I: np.ndarray  # first state of each interval
    last_I: np.ndarray  # last state of each interval
    is_beat_S: np.ndarray  # True in the part of an interval with an observed beat
    log_transition_II: np.ndarray  # from the last state of interval i to the first of interval j


@lru_cache(maxsize=16)
def beat_space(frame_rate_hz: float, min_bpm: float = BEATS_BPM[0], max_bpm: float = BEATS_BPM[1]) -> BeatSpace:
    """Returns the state space for all whole-frame intervals between `max_bpm` and `min_bpm`.

    Raises:
        ValueError: the tempo range has no whole interval of at least 2 frames.
    """
    shortest, longest = round(60 * frame_rate_hz / max_bpm), round(60 * frame_rate_hz / min_bpm)
    if shortest < 2 or longest < shortest:
        raise ValueError(
            f"{min_bpm}-{max_bpm} bpm at {frame_rate_hz} frames/s needs intervals of {shortest} to {longest} frames, "
            "but beats closer than 2 frames cannot be decoded; lower max_bpm or use a higher frame rate"
        )
    intervals_I = np.arange(shortest, longest + 1)
    first_I = np.concatenate([[0], np.cumsum(intervals_I)[:-1]])
    last_I = first_I + intervals_I - 1
    position_S = np.concatenate([np.arange(n) / n for n in intervals_I])  # share of the interval, [0, 1)
    return BeatSpace(
        intervals_I=intervals_I,
        first_I=first_I,
        last_I=last_I,
        is_beat_S=position_S < 1 / OBSERVATION_LAMBDA,
        log_transition_II=_log_transition(intervals_I),
    )


def decode_beats(
    activation_BT: np.ndarray,
    frame_rate_hz: float,
    *,
    bpm_range: tuple[float, float] = BEATS_BPM,
    decode_rate_hz: float | None = None,
) -> list[np.ndarray]:
    """Returns the beat times in seconds of every clip.

    At 25 frames/s a beat of 120 bpm lasts 12.5 frames, an interval without a state: every beat then costs a change of
    tempo, and half the tempo wins. Interpolating the activations to a finer grid avoids that.

    Args:
        activation_BT: beat probabilities in [0, 1].
        bpm_range: slowest and fastest tempo.
        decode_rate_hz: interpolate by the integer factor nearest to this rate; None does not.
    """
    factor = max(1, round((decode_rate_hz or frame_rate_hz) / frame_rate_hz))
    rate_hz = frame_rate_hz * factor
    space = beat_space(rate_hz, *bpm_range)
    beats: list[np.ndarray] = []
    for start in range(0, len(activation_BT), CLIPS_PER_PASS):
        chunk_BT = _interpolate(np.asarray(activation_BT[start : start + CLIPS_PER_PASS], dtype=np.float64), factor)
        path_BT = viterbi(chunk_BT, space)
        beats += [_pick_peaks(a, s) / rate_hz for a, s in zip(chunk_BT, space.is_beat_S[path_BT], strict=True)]
    return beats


def viterbi(activation_BT: np.ndarray, space: BeatSpace) -> np.ndarray:
    """Returns the most likely state of every frame, [B, T]."""
    clips, frames = activation_BT.shape
    safe_BT = np.clip(activation_BT, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    beat_BT, other_BT = np.log(safe_BT), np.log((1 - safe_BT) / (OBSERVATION_LAMBDA - 1))
    score_BS = np.where(space.is_beat_S, beat_BT[:, :1], other_BT[:, :1])  # all states are equally likely at first
    # only starts of intervals have a choice of predecessor; elsewhere it is the state before
    came_from_TBI = np.zeros((frames, clips, len(space.intervals_I)), dtype=np.int16)
    for t in range(1, frames):
        # [B, I from, I to]
        jump_BII = score_BS[:, space.last_I, None] + space.log_transition_II
        came_from_TBI[t] = jump_BII.argmax(axis=1)
        moved_BS = np.empty_like(score_BS)
        moved_BS[:, 1:] = score_BS[:, :-1]  # the first states are overwritten below
        moved_BS[:, space.first_I] = jump_BII.max(axis=1)  # a new beat starts
        score_BS = moved_BS + np.where(space.is_beat_S, beat_BT[:, t : t + 1], other_BT[:, t : t + 1])
    return _trace_back(score_BS.argmax(axis=1), came_from_TBI, space)


def _trace_back(state_B: np.ndarray, came_from_TBI: np.ndarray, space: BeatSpace) -> np.ndarray:
    frames, clips, _ = came_from_TBI.shape
    interval_of_S = np.repeat(np.arange(len(space.intervals_I)), space.intervals_I)
    is_first_S = np.zeros(len(interval_of_S), dtype=bool)
    is_first_S[space.first_I] = True
    path_BT = np.empty((clips, frames), dtype=np.int64)
    for t in range(frames - 1, -1, -1):
        path_BT[:, t] = state_B
        previous_B = came_from_TBI[t, np.arange(clips), interval_of_S[state_B]]
        state_B = np.where(is_first_S[state_B], space.last_I[previous_B], state_B - 1)
    return path_BT


def _interpolate(activation_BT: np.ndarray, factor: int) -> np.ndarray:
    """Returns activations on a finer grid, [B, (T - 1) * factor + 1], linear between frames."""
    if factor == 1:
        return activation_BT
    frames = activation_BT.shape[1]
    fine = np.arange((frames - 1) * factor + 1) / factor
    left = np.minimum(fine.astype(np.int64), frames - 2)
    share = fine - left
    return activation_BT[:, left] * (1 - share) + activation_BT[:, left + 1] * share


def _log_transition(intervals_I: np.ndarray) -> np.ndarray:
    ratio_II = intervals_I[None, :] / intervals_I[:, None]
    probability_II = np.exp(-TRANSITION_LAMBDA * np.abs(ratio_II - 1))
    probability_II[probability_II <= np.spacing(1)] = 0
    probability_II /= probability_II.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(probability_II)


def _pick_peaks(activation_T: np.ndarray, in_beat_T: np.ndarray) -> np.ndarray:
    """Returns the frame of the largest activation in each run of beat states."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], in_beat_T.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    return np.array([start + activation_T[start:end].argmax() for start, end in runs], dtype=np.float64)
