"""Differences and their intervals, against independent references."""

import numpy as np
import pytest
from scipy import stats

from distributed.drawing.tables import ABSENT
from sweeps.results.outcomes import differing, front, item_delta, points, seed_delta
from sweeps.results.tables import cell


def row(axis, value, seed, score, *, half=0.1, status="finished", flops=100):
    results = (
        {}
        if score is None
        else {"key": {"metric": "accuracy", "value": score, "interval": [score - half, score + half], "items": 50}}
    )
    return {
        "name": f"{axis}{value}-seed{seed}", "axis": axis, "value": value, "seed": seed, "status": status,
        "differs": {} if axis == "base" else {"a": [1, 2]}, "results": results, "also": [], "crops": 80,
        "train_s": 1.0, "evaluate_s": 1.0, "flops": flops, "model": "", "curve": [[8, 0.1], [16, score or 0]],
    }  # fmt: skip


def test_interval_over_seeds_is_that_of_a_paired_t_test():
    """Against scipy's paired test."""
    rng = np.random.default_rng(0)
    base, here = rng.normal(0.5, 0.1, 5), rng.normal(0.6, 0.1, 5)
    expected = stats.ttest_rel(here, base).confidence_interval(0.95)
    delta = seed_delta(list(here - base))
    assert (delta.lo, delta.hi) == pytest.approx((expected.low, expected.high))
    assert delta.over == "seeds"


def test_interval_over_items_covers_a_difference_of_independent_means():
    """Where all is symmetric, MOVER equals the normal interval of a difference of two independent means."""
    here, base = {"value": 0.7, "interval": [0.64, 0.76]}, {"value": 0.6, "interval": [0.52, 0.68]}
    delta = item_delta(here, base)
    assert delta.value == pytest.approx(0.1)
    assert (delta.lo, delta.hi) == pytest.approx((0.0, 0.2))
    mirrored = item_delta(base, here)
    assert (mirrored.lo, mirrored.hi) == pytest.approx((-delta.hi, -delta.lo))


def test_differences_are_paired_by_seed():
    """Each seed is compared with the base of the same seed, whatever the level of that seed."""
    rows = [row("base", "", s, level) for s, level in enumerate((0.2, 0.5, 0.8))]
    rows += [row("a", "2", s, level + 0.1 + 0.01 * s) for s, level in enumerate((0.2, 0.5, 0.8))]
    _, point = points(rows)
    assert point.deltas["key"].value == pytest.approx(0.11)
    assert point.deltas["key"].lo > 0.05


def test_a_failed_trial_stays_in_the_table():
    """A value whose only trial crashed is a row without numbers; with other seeds, those are compared."""
    rows = [row("base", "", 0, 0.5), row("base", "", 1, 0.6), row("a", "1", 0, None, status="crashed")]
    rows += [row("a", "2", 0, 0.7), row("a", "2", 1, None, status="diverged")]
    _, crashed, one_left = points(rows)
    assert crashed.values == {} and crashed.label == "a = 1"
    assert one_left.deltas["key"].over == "items"
    assert cell(crashed, "key") == ABSENT


def test_what_differs_leaves_out_seeds_and_places():
    """The report lists hyperparameters, not where shards were cached."""
    base = {"masks.ratio": 0.8, "train.seed": 0, "stream.url": "a", "telemetry.log_every": 1}
    here = {"masks.ratio": 0.6, "train.seed": 1, "stream.url": "b", "telemetry.log_every": 2}
    assert differing(base, here) == {"masks.ratio": [0.8, 0.6]}


def test_the_front_holds_what_nothing_beats_for_as_little():
    """Sorted by cost; of two at one cost the better one, and nothing that costs more without being better."""
    made = [
        ("base", "", 0.5, 100),
        ("a", "1", 0.4, 50),
        ("a", "2", 0.3, 60),
        ("a", "3", 0.6, 100),
        ("a", "4", None, 10),
    ]
    found = points([row(axis, value, 0, score, flops=flops) for axis, value, score, flops in made])
    assert [point.label for point in front(found)] == ["a = 1", "a = 3"]


def test_a_curve_is_the_mean_of_the_seeds_that_came_so_far():
    """At equal crops; a trial that was ended early leaves the rest to the others."""
    rows = [row("base", "", 0, 0.5), row("base", "", 1, 0.7)]
    rows[1]["curve"].append([24, 0.9])
    (point,) = points(rows)
    assert point.curve == ((8, pytest.approx(0.1)), (16, pytest.approx(0.6)), (24, pytest.approx(0.9)))
