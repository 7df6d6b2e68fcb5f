"""The room's front door: every command teaches, and the package offers its main names."""

import pytest

import pupujepa
from pupujepa.embedding.encoder import Encoder
from pupujepa.weights.weights import load
from tests.pupujepa.commands import run
from tests.pupujepa.models import SMALL


@pytest.mark.parametrize("command", ["embed", "attend", "info"])
def test_help_teaches_by_example(command, capsys):
    """The help of each command shows how it is typed."""
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    assert f"python -m pupujepa {command}" in capsys.readouterr().out


def test_the_package_offers_its_main_names():
    """load, Encoder, PupuJEPA and ModelConfig come from the package itself; other names are errors."""
    assert pupujepa.load is load
    assert pupujepa.Encoder is Encoder
    assert pupujepa.ModelConfig is type(SMALL)
    assert pupujepa.PupuJEPA.__module__ == "pupujepa.model.model"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pupujepa.nonsense
