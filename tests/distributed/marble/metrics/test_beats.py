import numpy as np
import pytest

from distributed.marble.metrics.beats import beat_space, decode_beats, viterbi
from distributed.marble.metrics.statistics import match_counts

RATE_HZ = 25.0


def metronome(bpm: float, *, offset_s: float = 0.2, duration_s: float = 10.24) -> np.ndarray:
    return np.arange(offset_s, duration_s, 60 / bpm)


def activation(beats_s: np.ndarray, *, noise: float, seed: int, frames: int = 256) -> np.ndarray:
    """A smeared, imperfect activation, like a probe's output."""
    rng = np.random.default_rng(seed)
    values = np.full(frames, 0.05)
    for frame in np.round(beats_s * RATE_HZ).astype(int):
        for offset, height in ((0, 0.9), (-1, 0.4), (1, 0.4)):
            if 0 <= frame + offset < frames:
                values[frame + offset] = max(values[frame + offset], height)
    return np.clip(values + noise * rng.standard_normal(frames), 0.01, 0.99)


def pooled_f1(references: list[np.ndarray], estimates: list[np.ndarray]) -> float:
    counts = match_counts(references, estimates)
    return 2 * counts["matched"].sum() / (counts["estimated"].sum() + counts["reference"].sum())


def test_state_space_has_the_sizes_of_the_reference_implementation():
    """The DBN that MARBLE ships has 357 states at 25 frames/s (intervals 7-27) and 3193 at 75 (21-82)."""
    coarse, fine = beat_space(25.0), beat_space(75.0)
    assert (coarse.intervals_I[0], coarse.intervals_I[-1], len(coarse.is_beat_S)) == (7, 27, 357)
    assert (fine.intervals_I[0], fine.intervals_I[-1], len(fine.is_beat_S)) == (21, 82, 3193)


def test_leaving_an_interval_is_a_probability_that_prefers_to_stay():
    """Each row of the transition sums to one and has its maximum at the same tempo."""
    probability_II = np.exp(beat_space(RATE_HZ).log_transition_II)
    np.testing.assert_allclose(probability_II.sum(axis=1), 1)
    assert (probability_II.argmax(axis=1) == np.arange(len(probability_II))).all()


def test_viterbi_finds_the_path_of_a_dense_reference():
    """On a small space the batched recursion equals textbook Viterbi over the full transition matrix."""
    space = beat_space(RATE_HZ, 100.0, 215.0)
    states = len(space.is_beat_S)
    transition = np.full((states, states), -np.inf)
    for i, (first, last) in enumerate(zip(space.first_I, space.last_I, strict=True)):
        for s in range(first, last):
            transition[s, s + 1] = 0.0
        transition[last, space.first_I] = space.log_transition_II[i]
    rng = np.random.default_rng(0)
    activations_BT = rng.uniform(0.02, 0.98, (6, 60))
    paths_BT = viterbi(activations_BT, space)
    for activation_T, path_T in zip(activations_BT, paths_BT, strict=True):
        assert log_probability(path_T, activation_T, space, transition) == pytest.approx(
            best_log_probability(activation_T, space, transition), abs=1e-9
        )


def observations(activation_T: np.ndarray, space) -> np.ndarray:
    return np.where(space.is_beat_S, np.log(activation_T)[:, None], np.log((1 - activation_T) / 15)[:, None])


def log_probability(path_T, activation_T, space, transition) -> float:
    seen = observations(activation_T, space)[np.arange(len(path_T)), path_T].sum()
    return seen + transition[path_T[:-1], path_T[1:]].sum()


def best_log_probability(activation_T, space, transition) -> float:
    seen = observations(activation_T, space)
    score = seen[0]
    for t in range(1, len(seen)):
        score = (score[:, None] + transition).max(axis=0) + seen[t]
    return score.max()


@pytest.mark.parametrize("bpm", [60, 75, 100, 125, 150, 187.5])
def test_a_clean_metronome_is_tracked(bpm: float):
    """At a tempo of whole frames all beats except those at the edges are found within 70 ms."""
    beats = metronome(bpm)
    [estimate] = decode_beats(activation(beats, noise=0.0, seed=0)[None], RATE_HZ)
    assert pooled_f1([beats], [estimate]) > 0.95


def test_a_tempo_between_two_intervals_needs_the_finer_grid():
    """At 25 frames/s, 120 bpm is 12.5 frames and decodes as 60 bpm; at 50 frames/s it is found."""
    beats = metronome(120)
    clip = activation(beats, noise=0.0, seed=0)[None]
    assert pooled_f1([beats], decode_beats(clip, RATE_HZ)) < 0.75
    assert pooled_f1([beats], decode_beats(clip, RATE_HZ, decode_rate_hz=50.0)) > 0.95


def test_an_encoder_that_is_fine_enough_is_decoded_as_it_is():
    """At 75 frames/s a decoding rate of 50 changes nothing."""
    beats = metronome(100, duration_s=5.0)
    clip = np.full((1, 375), 0.05)
    clip[0, np.round(beats * 75).astype(int)] = 0.9
    np.testing.assert_array_equal(decode_beats(clip, 75.0, decode_rate_hz=50.0)[0], decode_beats(clip, 75.0)[0])


def test_noise_is_smoothed_by_the_tempo_model():
    """The decoder finds the pulse under noise that makes peak picking useless."""
    tempi = np.linspace(62, 170, 24)
    references = [metronome(bpm, offset_s=0.1 + 0.01 * i) for i, bpm in enumerate(tempi)]
    noisy_BT = np.stack([activation(r, noise=0.25, seed=i) for i, r in enumerate(references)])
    decoded = pooled_f1(references, decode_beats(noisy_BT, RATE_HZ, decode_rate_hz=50.0))
    peaks = pooled_f1(references, [np.flatnonzero(a > 0.5) / RATE_HZ for a in noisy_BT])
    assert decoded > 0.85
    assert decoded > peaks + 0.15


def test_clips_do_not_influence_each_other():
    """The beats of a clip are the same in a batch and alone."""
    batch = np.stack([activation(metronome(b), noise=0.2, seed=int(b)) for b in (70, 111, 163)])
    together = decode_beats(batch, RATE_HZ)
    for clip, beats in zip(batch, together, strict=True):
        np.testing.assert_array_equal(decode_beats(clip[None], RATE_HZ)[0], beats)


def test_the_downbeat_range_follows_bars():
    """With 18-72 bpm the decoder finds bars of 2.4 s, which are outside the beat range of 55-215 bpm."""
    bars = metronome(25.0)
    clip = activation(bars, noise=0.05, seed=1)[None]
    assert pooled_f1([bars], decode_beats(clip, RATE_HZ, bpm_range=(18.0, 72.0))) > 0.95
    assert pooled_f1([bars], decode_beats(clip, RATE_HZ)) < 0.8


def test_a_tempo_that_the_frame_rate_cannot_show_is_refused():
    with pytest.raises(ValueError, match="closer than 2 frames"):
        beat_space(2.0, 55.0, 215.0)
