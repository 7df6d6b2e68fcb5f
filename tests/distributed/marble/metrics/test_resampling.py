import numpy as np

from distributed.marble.metrics.resampling import central_interval, resample_weights


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
