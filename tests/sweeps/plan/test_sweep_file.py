"""Sweep files: a sentence for each mistake, and values that read back."""

from dataclasses import make_dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupujepa.config import ConfigError, compose
from pupujepa.errors import UserError
from sweeps.plan.sweep_file import override, read_sweep

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.text(alphabet="abz019.-_ :/[]{}'\"#,", max_size=12) | scalars | st.lists(scalars, max_size=3))
def test_an_override_reads_back_as_it_was(value):
    """What is written as key=value is read by the command line as the same value and the same type."""
    kind = {bool: bool, int: int, float: float, str: str}.get(type(value), Any)
    schema = make_dataclass("Typed", [("key", kind, None if kind is Any else kind())])
    found = compose(schema, overrides=[override("key", value)]).key
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan": "all"}, "plan 'all' does not exist; choose one of one_at_a_time, grid, random, optuna"),
        ({"axes": {"a": {"values": [1]}}}, "axis 'a' has a list of values and no `key`"),
        ({"axes": {"a": {"key": "masks.ratio"}}}, "axis 'a' needs `values`"),
        ({"axes": {"a": {"values": {"x": 3}}}}, "axis 'a': 'x' must map dotted keys to values"),
        ({"axes": {"a": {"key": "b", "values": {"x": {"c": 1}}}}}, "has a key and named values"),
        ({"axes": {"a": {"key": "b", "low": 1}}, "plan": "random", "draws": 1}, "is a range, which needs a `key`"),
        (
            {"axes": {"a": {"key": "b", "low": 0, "high": 1, "log": True}}},
            "has log: true and low: 0, which has no logarithm",
        ),
        ({"axes": {"a": {"key": "b", "low": 0, "high": 1}}}, "is a range, which plan one_at_a_time cannot list"),
        (
            {"axes": {"a": {"key": "b", "values": [1], "when": {"c": 1}}}},
            "depends on 'c', which is not declared before it",
        ),
        (
            {"axes": {"a": {"key": "b", "values": [1, 2]}, "c": {"key": "d", "values": [1], "when": {"a": [1, 3]}}}},
            "axis 'c' depends on a=3, which does not exist; it has: 1, 2",
        ),
        ({"plan": "random"}, "plan random draws from axes; give the number of draws"),
        (
            {"plan": "optuna", "draws": 1, "axes": {"a": {"key": "b", "values": [1]}}},
            "so it needs compare_on: valid",
        ),
        ({"scheduler": {"kind": "hyperband"}}, "scheduler.kind 'hyperband' does not exist"),
        ({"scheduler": {"kind": "asha"}}, "so the budget must be in samples"),
        ({"scheduler": {"every": 1.5}}, "every=1.5 is a share of the budget"),
        ({"axes": {"base": {"key": "b", "values": [1]}}}, "an axis cannot be called 'base'"),
        ({"budget": {"steps": 1, "samples": 2}}, "exactly one of steps and samples"),
        ({"budget": {}}, "exactly one of steps and samples"),
        ({"seeds": [1, 1]}, "seeds must be a list of different integers"),
        ({"tasks": []}, "tasks is empty, so no trial would be evaluated"),
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
