import mir_eval
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Events, Targets
from distributed.marble.metrics.beats import decode_beats
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.metrics.statistics import CHORD_BATCH, central_interval, resample_weights


def test_items_of_one_unit_are_drawn_together():
    """Two takes of one piece have the same weight in every resample, and whole units are drawn."""
    weights_RN = resample_weights(["a", "a", "b", "c"], resamples=50, seed=0)
    np.testing.assert_array_equal(weights_RN[:, 0], weights_RN[:, 1])
    np.testing.assert_array_equal(weights_RN[:, 1:].sum(axis=1), 3)


def test_the_seed_alone_decides():
    """Equal seeds give equal resamples; different seeds differ."""
    draw = {s: resample_weights(list("abcdef"), resamples=20, seed=s) for s in (0, 1)}
    np.testing.assert_array_equal(draw[0], resample_weights(list("abcdef"), resamples=20, seed=0))
    assert not np.array_equal(draw[0], draw[1])


def test_the_interval_covers_a_known_mean_as_often_as_it_says():
    """Over many samples of 40 independent values, about 95 % of intervals contain the true mean."""
    rng = np.random.default_rng(3)
    units = [str(i) for i in range(40)]
    weights_RN = resample_weights(units, resamples=400, seed=4)
    hits = []
    for _ in range(300):
        values_N = rng.standard_normal(40)
        low, high = central_interval(weights_RN @ values_N / 40)
        hits.append(low <= 0 <= high)
    assert 0.9 <= np.mean(hits) <= 0.985


def test_takes_of_one_piece_widen_the_interval():
    """Four copies of each piece give the interval of one copy: they are no additional evidence."""
    values_U = np.random.default_rng(5).standard_normal(30)
    values_N = np.repeat(values_U, 4)
    widths = []
    for units in ([str(i) for i in range(120)], [str(i // 4) for i in range(120)]):
        weights_RN = resample_weights(units, resamples=2000, seed=6)
        low, high = central_interval((weights_RN @ values_N) / weights_RN.sum(axis=1))
        widths.append(high - low)
    assert 1.7 < widths[1] / widths[0] < 2.3


ITEMS, CLASSES = 50, 6
EMPTY, FULL = 4, 5  # a class that no item has and one that every item has


def example(seed: int) -> tuple[np.ndarray, Targets]:
    """Logits with ties; class 4 has no positive items, class 5 no negative ones."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.standard_normal((ITEMS, CLASSES)), 1)
    values = (logits + rng.standard_normal((ITEMS, CLASSES)) > 0.3).astype(np.float32)
    values[:, EMPTY], values[:, FULL] = 0, 1
    return logits, Targets(values, tuple("abcdef"))


def value(name: str, logits: np.ndarray, targets: Targets) -> float:
    return METRICS[name].exact(METRICS[name].statistics(logits, targets))


@pytest.mark.parametrize("seed", range(3))
def test_quirk_upstream_counts_classes_without_a_curve_as_zero(seed: int):
    """ROC-AUC is 0 for a class without positives or negatives; AP is 0 without positives and 1 without negatives.

    Protocol clean takes the mean over the classes that have a curve.
    """
    logits, targets = example(seed)
    auc = [sklearn_metrics.roc_auc_score(targets.values[:, c], logits[:, c]) for c in range(4)]
    ap = [sklearn_metrics.average_precision_score(targets.values[:, c], logits[:, c]) for c in range(4)]
    assert value("roc_auc_all", logits, targets) == pytest.approx(sum(auc) / CLASSES)
    assert value("average_precision_all", logits, targets) == pytest.approx((sum(ap) + 0 + 1) / CLASSES)
    assert value("roc_auc", logits, targets) == pytest.approx(np.mean(auc))
    assert value("average_precision", logits, targets) == pytest.approx(np.mean(ap))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_is_scikit_learns_at_a_probability_of_one_half(average: str):
    """Weighted items agree with scikit-learn's `sample_weight`; an empty class counts as 0 in the macro mean."""
    logits, targets = example(7)
    name = f"f1_{average}"
    statistics = METRICS[name].statistics(logits, targets)

    def reference(weights: np.ndarray) -> float:
        decided = logits > 0
        return sklearn_metrics.f1_score(
            targets.values > 0, decided, average=average, zero_division=0, sample_weight=weights
        )

    weights_RN = np.random.default_rng(1).integers(0, 4, (8, ITEMS)).astype(np.float64)
    np.testing.assert_allclose(METRICS[name].resampled(statistics, weights_RN), [reference(w) for w in weights_RN])
    assert METRICS[name].exact(statistics) == pytest.approx(reference(np.ones(ITEMS)))


@pytest.mark.parametrize("name", ["roc_auc_all", "average_precision_all"])
def test_drawing_an_item_twice_is_having_it_twice(name: str):
    """The resampled value is the exact value of the resampled items, even if a class loses its last positive."""
    logits, targets = example(5)
    weights_RN = np.random.default_rng(2).integers(0, 3, (6, ITEMS)).astype(np.float64)
    weights_RN[0, targets.values[:, 0] > 0] = 0
    resampled = METRICS[name].resampled(METRICS[name].statistics(logits, targets), weights_RN)
    for weights_N, found in zip(weights_RN, resampled, strict=True):
        rows = np.repeat(np.arange(ITEMS), weights_N.astype(int))
        assert found == pytest.approx(value(name, logits[rows], targets.take(rows)))


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
