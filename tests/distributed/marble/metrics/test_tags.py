import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from distributed.marble.datasets.targets import Targets
from distributed.marble.metrics.metrics import METRICS

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
