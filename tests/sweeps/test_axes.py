"""Sweep files: what they expand to, and the sentences for what is wrong in them."""

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pupujepa.config import ConfigError
from pupujepa.errors import UserError
from sweeps.axes import AxisConfig, BaseConfig, Budget, SweepConfig, expand, override, read_sweep

RATIO = AxisConfig(key="masks.ratio", values=[0.6, 0.7])
SHAPES = AxisConfig(values={"random": {"masks.random": 1.0, "masks.block": 0.0}})
SWEEP = SweepConfig(
    base=BaseConfig("demo", {"model.width": 64}),
    axes={"ratio": RATIO, "shapes": SHAPES},
    tasks=["collection"],
    budget=Budget(steps=10),
)

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)


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


@given(st.text(alphabet="abz019.-_ :/[]{}'\"#,", max_size=12) | scalars | st.lists(scalars, max_size=3))
def test_an_override_reads_back_as_it_was(value):
    """What is written as key=value is read by the command line as the same value and the same type."""
    found = OmegaConf.to_container(OmegaConf.from_dotlist([override("key", value)]))["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan": "random"}, "plan 'random' does not exist; choose one of one_at_a_time, grid"),
        ({"axes": {"a": {"values": [1]}}}, "axis 'a' has a list of values and no `key`"),
        ({"axes": {"a": {"key": "masks.ratio"}}}, "axis 'a' needs `values`"),
        ({"axes": {"a": {"values": {"x": 3}}}}, "axis 'a': 'x' must map dotted keys to values"),
        ({"axes": {"a": {"key": "b", "values": {"x": {"c": 1}}}}}, "has a key and named values"),
        ({"axes": {"base": {"key": "b", "values": [1]}}}, "an axis cannot be called 'base'"),
        ({"budget": {"steps": 1, "samples": 2}}, "exactly one of steps and samples"),
        ({"budget": {}}, "exactly one of steps and samples"),
        ({"seeds": [1, 1]}, "seeds must be a list of different integers"),
        ({"tasks": []}, "tasks names what the evaluator measures"),
        ({"probe_tracks": 0}, "leaves nothing to probe"),
    ],
)
def test_a_wrong_sweep_file_is_one_sentence(write_sweep, fields, message):
    """Each mistake is named with the file, before anything is composed or started."""
    path = write_sweep(**fields)
    with pytest.raises(UserError, match=r"sweep\.yaml: ") as caught:
        read_sweep(path)
    assert message in str(caught.value)


def test_an_unknown_key_of_a_sweep_file_names_the_nearest(write_sweep):
    """A misspelt `seed:` would otherwise run with the default."""
    with pytest.raises(ConfigError, match=r"unknown key seed; did you mean seeds\?"):
        read_sweep(write_sweep(seed=[0]))
