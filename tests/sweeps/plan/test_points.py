"""What a sweep file expands to: points of its axes, and the trials at them."""

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupujepa.errors import UserError
from sweeps.plan.points import expand
from sweeps.plan.sweep_file import AxisConfig, BaseConfig, Budget, SweepConfig

RATIO = AxisConfig(key="masks.ratio", values=[0.6, 0.7])
SHAPES = AxisConfig(values={"random": {"masks.random": 1.0, "masks.block": 0.0}})
SWEEP = SweepConfig(
    base=BaseConfig("demo", {"model.width": 64}),
    axes={"ratio": RATIO, "shapes": SHAPES},
    tasks=["collection"],
    budget=Budget(steps=10),
)
METHODS = {
    "objective": AxisConfig(values={"jepa": {"objective.kind": "jepa"}, "mae": {"objective.kind": "mae"}}),
    "layers": AxisConfig(key="objective.target_layers", values=[1, 2], when={"objective": "jepa"}),
}


@given(counts=st.lists(st.integers(1, 4), max_size=3), seeds=st.lists(st.integers(0, 99), min_size=1, unique=True))
def test_number_of_trials(counts, seeds):
    """One at a time: the base and each value once per seed. Grid: the base and the product of the axes."""
    axes = {f"a{i}": AxisConfig(key=f"k{i}", values=list(range(n))) for i, n in enumerate(counts)}
    sweep = replace(SWEEP, axes=axes, seeds=seeds)
    one = expand(sweep)
    grid = expand(replace(sweep, plan="grid"))
    assert len(one) == len(seeds) * (1 + sum(counts))
    assert len(grid) == len(seeds) * (1 + (prod(counts) if counts else 0))
    for trials in (one, grid):
        assert len({t.name for t in trials}) == len(trials)
        assert [t.seed for t in trials if t.is_base] == seeds


def test_one_at_a_time_changes_one_axis():
    """A trial holds the base's overrides, then what is shared, then its seed, then its own axis, which wins."""
    trials = {t.name: t for t in expand(SWEEP, shared=["masks.ratio=0.75"])}
    assert list(trials) == ["base-seed0", "ratio=0.6-seed0", "ratio=0.7-seed0", "shapes=random-seed0"]
    common = ("model.width=64", "masks.ratio=0.75", "train.seed=0", "stream.seed=0")
    assert trials["base-seed0"].overrides == common
    assert trials["ratio=0.7-seed0"].overrides == (*common, "masks.ratio=0.7")
    assert trials["shapes=random-seed0"].overrides == (*common, "masks.random=1.0", "masks.block=0.0")


def test_a_grid_names_all_its_axes():
    """A grid point carries the axis and value of each of its settings."""
    point = expand(replace(SWEEP, plan="grid"))[-1]
    assert (point.axis, point.value) == ("ratio + shapes", "0.7 + random")
    assert point.name == "ratio=0.7,shapes=random-seed0"


def test_a_conditional_axis_comes_with_what_it_depends_on():
    """One at a time: beside the first value that lets it exist. In a grid: only there; other points go without it."""
    one = expand(replace(SWEEP, axes=METHODS))
    assert [t.axis for t in one[3:]] == ["objective + layers"] * 2
    assert one[3].overrides[-2:] == ("objective.kind=jepa", "objective.target_layers=1")
    grid = expand(replace(SWEEP, axes=METHODS, plan="grid"))
    assert [t.value for t in grid[1:]] == ["jepa + 1", "jepa + 2", "mae"]


def test_draws_are_different_lie_in_range_and_repeat():
    """The same file draws the same points; three digits of a number are what its trial is called and trained with."""
    axes = METHODS | {"rate": AxisConfig(key="schedule.peak_lr", low=1e-4, high=1e-2, log=True)}
    sweep = replace(SWEEP, axes=axes, plan="random", draws=30)
    trials = expand(sweep)
    assert expand(sweep) == trials
    assert len({t.name for t in trials}) == 31
    rates = [float(t.overrides[-1].partition("=")[2]) for t in trials[1:]]
    assert 1e-4 <= min(rates) < 1e-3 < max(rates) <= 1e-2
    assert all(("layers" in t.axis) == ("jepa" in t.value) for t in trials[1:])
    few = expand(replace(sweep, axes={"ratio": RATIO}))
    assert sorted(t.value for t in few[1:]) == ["0.6", "0.7"]


def test_the_sweeps_own_keys_are_not_the_trainers():
    """Recipe, length, data and evaluation are taken out of the overrides; an axis goes before the base."""
    values = {
        "x": {"preset": "robust", "equal": "flops", "data.share": 0.5, "evaluate.readout": "mean", "masks.ratio": 0.6}
    }
    sweep = replace(SWEEP, base=BaseConfig("demo", {"evaluate.readout": "region:4x1", "evaluate.window": 1024}))
    base, trial = expand(replace(sweep, axes={"a": AxisConfig(values=values)}))
    assert base.overrides == ("train.seed=0", "stream.seed=0")
    assert base.encoder("runs/a") == "runs/a:region:4x1:window=1024"
    assert trial.overrides == ("train.seed=0", "stream.seed=0", "masks.ratio=0.6")
    assert (trial.presets, trial.equal, trial.share) == (("robust",), "flops", 0.5)
    assert trial.encoder("runs/a") == "runs/a:mean:window=1024"


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ({"equal": "minutes"}, "axis 'a': equal: minutes is not one of steps, tokens, flops"),
        ({"data.share": 0}, r"axis 'a': data\.share=0 must be a share"),
        ({"evaluate.layer": 3}, r"axis 'a': evaluate\.layer is not an option"),
    ],
)
def test_an_own_key_that_means_nothing_is_refused(bundle, message):
    """Before anything is composed."""
    with pytest.raises(UserError, match=message):
        expand(replace(SWEEP, axes={"a": AxisConfig(values={"x": bundle})}))
