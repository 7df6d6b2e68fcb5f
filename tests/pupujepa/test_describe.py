"""The info command."""

from tests.pupujepa.commands import run
from tests.pupujepa.models import random_model


def test_info_tells_the_counts(weights, capsys):
    """A size by name and a folder of weights are described; the numbers are the model's."""
    assert run("info", "large") == 0
    told = capsys.readouterr().out
    assert "403,073,024" in told
    assert "256 steps x 8 bands = 2048 tokens, 25 steps/s" in told
    assert "410 context, 1638 targets" in told
    assert run("info", weights) == 0
    assert f"{sum(p.numel() for p in random_model().student.parameters()):,}" in capsys.readouterr().out


def test_info_offers_the_nearest_size(capsys):
    """A misspelt size is one sentence with the right one."""
    assert run("info", "larg") == 2
    assert "did you mean large" in capsys.readouterr().err
