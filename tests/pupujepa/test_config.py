"""Configuration is composed in one order, and unknown keys are errors."""

from dataclasses import dataclass, field

import pytest

from pupujepa.config import ConfigError, compose, from_yaml, to_yaml


@dataclass(frozen=True)
class Inner:
    width: int = 1
    probabilities: tuple[float, ...] = (0.5, 0.25)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "run"
    cache: str | None = None


def test_later_layers_win(tmp_path):
    """defaults < preset < file < command line."""
    file = tmp_path / "mine.yaml"
    file.write_text("inner:\n  width: 3\nname: file\n")
    config = compose(Outer, presets=[{"inner": {"width": 2}, "cache": "p"}], file=file, overrides=["name=line"])
    assert config == Outer(Inner(width=3), name="line", cache="p")


def test_round_trip_through_yaml():
    """from_yaml is the inverse of to_yaml, nested tuples and nulls included."""
    config = Outer(Inner(width=7, probabilities=(0.1, 0.9)), name="x")
    assert from_yaml(Outer, to_yaml(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.widht=2", r"unknown key inner\.widht; did you mean inner\.width\?"),
        ("nmae=2", r"unknown key nmae; did you mean name\?"),
        ("zzz=2", "known keys here: cache, inner, name"),
        ("inner.width=wide", r"'wide'.*'inner\.width'"),
        ("name", "has no '='"),
    ],
)
def test_a_wrong_override_is_refused_with_its_remedy(override, message):
    """A misspelt key must never be ignored."""
    with pytest.raises(ConfigError, match=message):
        compose(Outer, overrides=[override])


def test_missing_file_offers_the_nearest(tmp_path):
    """A wrong preset name is answered with the presets that exist."""
    (tmp_path / "demo.yaml").write_text("name: demo\n")
    with pytest.raises(ConfigError, match="did you mean demo"):
        compose(Outer, file=tmp_path / "demp.yaml")
