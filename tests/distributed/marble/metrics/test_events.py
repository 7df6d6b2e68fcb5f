import mir_eval
import numpy as np
import pytest

from distributed.marble.datasets.targets import Events, Targets
from distributed.marble.metrics.beats import decode_beats
from distributed.marble.metrics.events import CHORD_BATCH
from distributed.marble.metrics.metrics import METRICS

RATE_HZ = 50.0


def clicks(bpm: float, *, seconds: float = 10.0, offset_s: float = 0.2) -> np.ndarray:
    return np.arange(offset_s, seconds, 60 / bpm)


def logits_of(beats: list[np.ndarray], frames: int = 500) -> np.ndarray:
    """Logits of a good probe: high at the frames of beats, fading over two frames, like its targets."""
    values = np.full((len(beats), frames, 1), -4.0)
    for row, times in enumerate(beats):
        for offset, height in ((0, 3.0), (-1, 0.0), (1, 0.0), (-2, -1.0), (2, -1.0)):
            at = np.round(times * RATE_HZ).astype(int) + offset
            at = at[(at >= 0) & (at < frames)]
            values[row, at, 0] = np.maximum(values[row, at, 0], height)
    return values


def targets_of(beats: list[np.ndarray], tracks: list[int], *, on_grid: bool = False) -> Targets:
    events = Events(
        tuple((b,) for b in beats),
        RATE_HZ,
        ((55.0, 215.0),),
        decode_rates_hz=None,
        on_grid=on_grid,
        track_of_item=np.array(tracks),
    )
    return Targets(np.zeros((len(beats), 500, 1), dtype=np.float32), ("beats",), events)


@pytest.mark.parametrize("bpm", [60, 75, 100, 120, 150, 200])
def test_a_metronome_has_mir_evals_f_measure(bpm: float):
    """The F1 of a metronome with known beats equals mir_eval's beat F-measure and is nearly 1."""
    beats = clicks(bpm)
    statistics = METRICS["beat_f1"].statistics(logits_of([beats]), targets_of([beats], [0]))
    [estimate] = decode_beats(1 / (1 + np.exp(-logits_of([beats])[:, :, 0])), RATE_HZ)
    expected = mir_eval.beat.f_measure(beats, estimate, f_measure_threshold=0.07)
    assert METRICS["beat_f1"].exact(statistics) == pytest.approx(expected)
    assert expected > 0.95


def test_quirk_upstream_pools_counts_and_clean_takes_the_mean_of_tracks():
    """With a correct long track and a half-wrong short one, micro F1 is nearer to the long one's."""
    beats = [clicks(120), clicks(100), clicks(150), clicks(75)]
    counts = {
        "matched": np.array([20.0, 20.0, 20.0, 2.0]),
        "estimated": np.array([20.0, 20.0, 20.0, 4.0]),
        "reference": np.array([20.0, 20.0, 20.0, 4.0]),
        "track": np.array([0, 0, 0, 1]),
    }
    assert METRICS["beat_f1"].exact(counts) == pytest.approx(2 * 62 / 128)
    assert METRICS["beat_f1_tracks"].exact(counts) == pytest.approx((1 + 0.5) / 2)
    twice_the_second = np.array([[1.0, 1.0, 1.0, 2.0]])
    assert METRICS["beat_f1_tracks"].resampled(counts, twice_the_second)[0] == pytest.approx((1 + 2 * 0.5) / 3)
    statistics = METRICS["beat_f1_tracks"].statistics(logits_of(beats), targets_of(beats, [0, 0, 0, 1]))
    assert METRICS["beat_f1_tracks"].exact(statistics) > 0.9


def test_quirk_events_that_round_beyond_the_last_frame_are_lost_upstream():
    """A beat at 9.995 s rounds to frame 500 of 0 ... 499: upstream loses it, clean counts it."""
    beats = np.array([0.5, 9.995])
    for on_grid, expected in ((True, 1.0), (False, 2.0)):
        statistics = METRICS["beat_f1"].statistics(logits_of([beats]), targets_of([beats], [0], on_grid=on_grid))
        assert statistics["reference"].tolist() == [expected]


def chord_example(seed: int) -> tuple[np.ndarray, Targets]:
    """Nineteen slices, some with few counted frames, in three batches of 8, 8 and 3."""
    rng = np.random.default_rng(seed)
    classes_NT = rng.integers(-1, 25, (19, 40))
    classes_NT[:5, 4:] = -1
    classes_NT[18] = -1
    return rng.standard_normal((19, 40, 25)), Targets(classes_NT, tuple(f"c{i}" for i in range(25)))


def test_frame_accuracy_is_the_share_of_all_frames_that_count():
    """Frames of class -1 are neither correct nor wrong."""
    logits, targets = chord_example(0)
    counted = targets.values >= 0
    expected = (logits.argmax(-1) == targets.values)[counted].mean()
    assert METRICS["frame_accuracy"].exact(METRICS["frame_accuracy"].statistics(logits, targets)) == pytest.approx(
        expected
    )


def test_quirk_upstreams_chord_accuracy_is_a_mean_of_batches():
    """Batches of 8 slices are weighted by slices, not by frames, so the value differs from the share."""
    logits, targets = chord_example(1)
    statistics = METRICS["frame_accuracy_batches"].statistics(logits, targets)
    right, counted = logits.argmax(-1) == targets.values, targets.values >= 0
    batches = [slice(s, s + CHORD_BATCH) for s in (0, 8, 16)]
    expected = np.average([right[b][counted[b]].mean() for b in batches], weights=[8, 8, 3])
    assert METRICS["frame_accuracy_batches"].exact(statistics) == pytest.approx(expected)
    assert expected != pytest.approx(METRICS["frame_accuracy"].exact(statistics), abs=1e-6)


def test_resampled_frame_accuracy_counts_a_slice_as_often_as_it_is_drawn():
    logits, targets = chord_example(2)
    weights_N = np.random.default_rng(0).integers(0, 3, 19).astype(np.float64)
    rows = np.repeat(np.arange(19), weights_N.astype(int))
    metric = METRICS["frame_accuracy"]
    resampled = metric.resampled(metric.statistics(logits, targets), weights_N[None])[0]
    assert resampled == pytest.approx(metric.exact(metric.statistics(logits[rows], targets.take(rows))))
