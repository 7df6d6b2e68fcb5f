import math
from dataclasses import replace

import mir_eval
import numpy as np
import pytest
import torch
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


def targets_of(beats: list[np.ndarray], tracks: list[int], *, label_frames: int | None = None) -> Targets:
    events = Events(
        tuple((b,) for b in beats),
        RATE_HZ,
        ((55.0, 215.0),),
        decode_rates_hz=None,
        label_frames=label_frames,
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
    for label_frames, expected in ((500, 1.0), (None, 2.0)):
        targets = targets_of([beats], [0], label_frames=label_frames)
        statistics = METRICS["beat_f1"].statistics(logits_of([beats]), targets)
        assert statistics["reference"].tolist() == [expected]


def test_quirk_upstream_counts_a_beat_in_the_label_frame_that_the_encoder_lacks():
    """MERT gives 749 frames for 750 labels: a beat at frame 749 is a reference that no estimate can be at."""
    beats = np.array([0.5, 749 / 75])
    targets = replace(targets_of([beats], [0], label_frames=750), values=np.zeros((1, 749, 1), dtype=np.float32))
    assert targets.events is not None
    targets = replace(targets, events=replace(targets.events, frame_rate_hz=75.0))
    statistics = METRICS["beat_f1"].statistics(np.full((1, 749, 1), -4.0), targets)
    assert statistics["reference"].tolist() == [2.0]


def test_quirk_upstream_decodes_probabilities_of_bf16(monkeypatch: pytest.MonkeyPatch):
    """Its autocast leaves 8 bits of a probability; clean decodes all of it."""
    seen = []
    monkeypatch.setattr(
        "distributed.marble.metrics.statistics.decode_beats",
        lambda activation_NT, *_, **__: (seen.append(activation_NT), [np.zeros(0)])[1],
    )
    logits = np.full((1, 500, 1), 0.3)
    for label_frames in (500, None):
        METRICS["beat_f1"].statistics(logits, targets_of([np.array([1.0])], [0], label_frames=label_frames))
    probability = 1 / (1 + math.exp(-0.3))
    assert seen[0][0, 0] == torch.tensor(probability).bfloat16().item() != probability
    assert seen[1][0, 0] == pytest.approx(probability, abs=1e-15)


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
    """Batches of 8 slices are weighted by slices, not by frames; one without a frame that counts is 0."""
    logits, targets = chord_example(1)
    targets.values[8:16] = -1
    statistics = METRICS["frame_accuracy_batches"].statistics(logits, targets)
    right, counted = logits.argmax(-1) == targets.values, targets.values >= 0
    first, last = slice(0, CHORD_BATCH), slice(16, 19)
    accuracies = [right[first][counted[first]].mean(), 0.0, right[last][counted[last]].mean()]
    expected = np.average(accuracies, weights=[8, 8, 3])
    assert METRICS["frame_accuracy_batches"].exact(statistics) == pytest.approx(expected)
    assert expected != pytest.approx(METRICS["frame_accuracy"].exact(statistics), abs=1e-6)


def test_resampled_frame_accuracy_counts_a_slice_as_often_as_it_is_drawn():
    logits, targets = chord_example(2)
    weights_N = np.random.default_rng(0).integers(0, 3, 19).astype(np.float64)
    rows = np.repeat(np.arange(19), weights_N.astype(int))
    metric = METRICS["frame_accuracy"]
    resampled = metric.resampled(metric.statistics(logits, targets), weights_N[None])[0]
    assert resampled == pytest.approx(metric.exact(metric.statistics(logits[rows], targets.take(rows))))
