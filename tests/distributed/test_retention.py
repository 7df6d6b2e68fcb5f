"""Retention: the newest, every m-th, and the best by a metric."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.checkpoints.config import CheckpointConfig, best_step, kept
from pupujepa.errors import UserError


@given(st.sets(st.integers(1, 200)), st.integers(1, 5), st.integers(0, 50), st.none() | st.integers(1, 200))
def test_what_is_kept(steps, keep, keep_every, best):
    """Of any steps: the newest n, the multiples of m and the best are kept, and nothing else."""
    chosen = kept(steps, keep=keep, keep_every=keep_every, best=best)
    assert chosen <= steps
    newest = set(sorted(steps)[-keep:])
    for step in steps:
        milestone = keep_every > 0 and step % keep_every == 0
        assert (step in chosen) == (step in newest or milestone or step == best)


def test_the_best_is_chosen_among_those_that_there_are():
    """The highest value of a checkpoint's own step; rows without the metric, and steps without checkpoint, are none."""
    rows = [
        {"step": 10, "probe/key": 0.5},
        {"step": 15, "probe/key": 0.9},
        {"step": 20, "probe/key": 0.7, "loss": 0.2},
        {"step": 30, "probe/key": None, "loss": 0.1},
        {"step": 30, "diag/std": 1.0},
    ]
    assert best_step(rows, "probe/key", among=[10, 20, 30]) == 20
    assert best_step(rows, "-probe/key", among=[10, 20, 30]) == 10
    assert best_step(rows, "-loss", among=[10, 20, 30]) == 30
    assert best_step(rows, "probe/tempo", among=[10, 20, 30]) is None
    assert best_step(rows, "probe/key", among=[]) is None


def test_the_last_row_of_a_step_counts_and_the_later_of_equals_wins():
    """A resumed run measures again; two checkpoints with one value are not a reason to keep the older."""
    rows = [{"step": 10, "a": 0.9}, {"step": 10, "a": 0.1}, {"step": 20, "a": 0.5}, {"step": 30, "a": 0.5}]
    assert best_step(rows, "a", among=[10, 20, 30]) == 30
    assert best_step([{"step": 10, "a": float("nan")}, {"step": 20, "a": 0.0}], "a", among=[10, 20]) == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": 0}, "must be at least 1"),
        ({"keep": 0}, "must be at least 1"),
        ({"every": 10, "keep_every": 25}, "checkpoint.keep_every=25 is not a multiple of checkpoint.every=10"),
        ({"on_failure": "ignore"}, "checkpoint.on_failure"),
    ],
)
def test_settings_that_cannot_be_meant(settings, said):
    """Each is one sentence before anything starts."""
    with pytest.raises(UserError, match=said):
        CheckpointConfig(**settings)
