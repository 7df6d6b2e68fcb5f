import mir_eval
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Events, Targets
from distributed.marble.metrics.metrics import METRICS, key_score_table
from distributed.marble.metrics.statistics import match_counts
from distributed.marble.tasks.tasks import KEYS

ITEMS = 60


def example(name: str, rng: np.random.Generator) -> tuple[np.ndarray, Targets]:
    """Logits with ties, and targets of the metric's kind."""
    coarse = np.round(rng.standard_normal((ITEMS, 5)), 1)
    if name in ("accuracy", "balanced_accuracy"):
        return coarse, Targets(rng.integers(0, 4, ITEMS), tuple("abcde"))
    if name in ("roc_auc", "average_precision"):
        values = (coarse + rng.standard_normal((ITEMS, 5)) > 0.5).astype(np.float32)
        values[:, 3] = 0
        return coarse, Targets(values, tuple("abcde"))
    values = coarse[:, :2] + rng.standard_normal((ITEMS, 2))
    return coarse[:, :2], Targets(values.astype(np.float32), ("tempo", "density"))


def reference(name: str, logits: np.ndarray, targets: Targets, weights: np.ndarray) -> float:
    y, kept = targets.values, [0, 1, 2, 4]
    if name == "accuracy":
        return sklearn_metrics.accuracy_score(y, logits.argmax(1), sample_weight=weights)
    if name == "balanced_accuracy":
        present = np.unique(y[weights > 0])
        return sklearn_metrics.recall_score(
            y, logits.argmax(1), labels=present, average="macro", sample_weight=weights, zero_division=0
        )
    if name == "roc_auc":
        return sklearn_metrics.roc_auc_score(y[:, kept], logits[:, kept], average="macro", sample_weight=weights)
    if name == "average_precision":
        return sklearn_metrics.average_precision_score(
            y[:, kept], logits[:, kept], average="macro", sample_weight=weights
        )
    column = {"r2": slice(None), "r2_first": slice(0, 1), "r2_second": slice(1, 2)}[name]
    return sklearn_metrics.r2_score(y[:, column], logits[:, column], sample_weight=weights)


@pytest.mark.parametrize(
    "name", ["accuracy", "balanced_accuracy", "roc_auc", "average_precision", "r2", "r2_first", "r2_second"]
)
def test_resampled_values_are_scikit_learns_with_sample_weight(name: str):
    """Every metric agrees with scikit-learn's `sample_weight` for weighted items, ties included."""
    rng = np.random.default_rng(1)
    logits, targets = example(name, rng)
    weights_RN = rng.integers(0, 4, (8, ITEMS)).astype(np.float64)
    statistics = METRICS[name].statistics(logits, targets)
    expected = [reference(name, logits, targets, w) for w in weights_RN]
    np.testing.assert_allclose(METRICS[name].resampled(statistics, weights_RN), expected, rtol=1e-9)
    whole = METRICS[name].resampled(statistics, np.ones((1, ITEMS)))[0]
    assert METRICS[name].exact(statistics) == pytest.approx(whole, rel=1e-9)


def test_key_score_is_the_mean_of_mir_evals():
    """The weighted key score equals mir_eval's mean over items, and a fifth above counts half."""
    rng = np.random.default_rng(2)
    logits, references = rng.standard_normal((50, 24)), rng.integers(0, 24, 50)
    statistics = METRICS["key_weighted"].statistics(logits, Targets(references, KEYS))
    expected = [
        mir_eval.key.weighted_score(KEYS[r], KEYS[e]) for r, e in zip(references, logits.argmax(1), strict=True)
    ]
    assert METRICS["key_weighted"].exact(statistics) == pytest.approx(np.mean(expected))
    table = key_score_table(KEYS)
    assert table[KEYS.index("C major"), KEYS.index("G major")] == 0.5
    assert table[KEYS.index("C major"), KEYS.index("A minor")] == 0.3


def test_pooled_f1_counts_what_mir_eval_matches_over_all_items():
    """Matches, estimates and references are summed first: the F1 of all events, not the mean of F1s."""
    references = [np.array([1.0, 2.0, 3.0]), np.array([]), np.array([0.5])]
    estimates = [np.array([1.05, 2.2]), np.array([4.0]), np.array([0.5])]
    counts = match_counts(references, estimates)
    assert METRICS["beat_f1"].exact(counts) == pytest.approx(2 * 2 / (4 + 4))
    single = METRICS["beat_f1"].resampled(counts, np.eye(3))
    expected = mir_eval.beat.f_measure(references[0], estimates[0], f_measure_threshold=0.07)
    np.testing.assert_allclose(single, [expected, 0.0, 1.0])


def test_references_lie_on_the_grid_only_under_the_upstream_protocol():
    """A reference between two frames is 60 ms from the estimate, and 80 ms after rounding to a frame."""
    logits = np.full((1, 250, 1), -9.0)
    logits[0, 10::12, 0] = 9.0
    times = ((np.arange(10, 250, 12) / 25 + 0.061,),)
    scores = {}
    for label_frames in (None, 250):
        events = Events(times, 25.0, ((55.0, 215.0),), decode_rates_hz=None, label_frames=label_frames)
        targets = Targets(np.zeros((1, 250, 1), dtype=np.float32), ("beats",), events)
        scores[label_frames] = METRICS["beat_f1"].exact(METRICS["beat_f1"].statistics(logits, targets))
    assert scores[None] > 0.9
    assert scores[250] < 0.1


def test_arousal_and_valence_have_an_r2_each():
    """Column 0 is arousal and column 1 valence, as in EMO's labels; the headline is their mean."""
    logits, targets = example("r2", np.random.default_rng(3))
    values = {n: METRICS[n].exact(METRICS[n].statistics(logits, targets)) for n in ("r2_arousal", "r2_valence", "r2")}
    expected = sklearn_metrics.r2_score(targets.values, logits, multioutput="raw_values")
    np.testing.assert_allclose([values["r2_arousal"], values["r2_valence"]], expected)
    assert values["r2"] == pytest.approx(expected.mean())


def test_a_metric_without_a_defined_class_is_nan():
    """ROC-AUC of equal labels is NaN; it must never be 0.5."""
    targets = Targets(np.ones((4, 2), dtype=np.float32), ("a", "b"))
    statistics = METRICS["roc_auc"].statistics(np.zeros((4, 2)), targets)
    assert np.isnan(METRICS["roc_auc"].exact(statistics))
