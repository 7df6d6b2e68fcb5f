"""The info command: its numbers are the model's, the counter's and the optimiser's."""

import re
from dataclasses import replace

import pytest

from pupujepa.cost.cost import count_parameters, model_size, size_names, training_cost
from pupujepa.cost.describe import counted_flops
from pupujepa.cost.memory import StepConfig, activations, memory_per_rank
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig
from pupujepa.weights.weights import save_release
from tests.pupujepa.commands import run
from tests.pupujepa.models import SMALL, random_model


def column(text: str, row: str) -> list[float]:
    """Returns the numbers of a row of the memory table."""
    line = re.search(rf"^  {row} +([\d. ]+)$", text, re.MULTILINE)
    assert line, f"no row {row}"
    return [float(word) for word in line[1].split()]


def test_a_size_is_described_without_weights(capsys):
    """Parameters, grid and masks of Large are those of the release."""
    assert run("info", "large", "--checkpointing") == 0
    told = capsys.readouterr().out
    assert "403,073,024" in told
    assert "256 steps x 8 bands = 2048 tokens, 25 steps/s" in told
    assert "410 context, 1638 targets" in told
    assert "8192 wide" in told
    training = float(re.search(r"training +([\d,.]+) GFLOP", told)[1].replace(",", ""))
    assert training == pytest.approx(3240, rel=0.01)


def test_a_folder_of_weights_is_described(weights, capsys):
    """The counts are those of the tensors."""
    assert run("info", weights) == 0
    assert f"{sum(p.numel() for p in random_model().student.parameters()):,}" in capsys.readouterr().out


def test_operations_are_checked_by_torchs_counter(weights, capsys):
    """--count runs torch's counter over the training step, and it agrees in every precision."""
    for extra in ((), ("--precision", "fp32"), ("--checkpointing",)):
        assert run("info", weights, "--count", *extra) == 0
        told = capsys.readouterr().out
        assert re.search(r"counted by torch +[\d.]+ GFLOP  the same", told)


def test_a_wrong_count_is_not_called_the_same(weights, capsys, monkeypatch):
    """If formula and counter differ, the text shows the difference."""
    monkeypatch.setattr("pupujepa.cost.describe.counted_flops", lambda step: 2 * 10**12)
    assert run("info", weights, "--count") == 0
    assert "%: please report this" in capsys.readouterr().out


@pytest.mark.parametrize("size", size_names())
def test_torch_counts_what_arithmetic_gives(size):
    """At every size, forward and backward of one crop take exactly the operations that cost.py computes.

    Blocks are alike, so encoder and predictor are cut to the first ones of different number.
    """
    step = StepConfig(replace(model_size(size), depth=3, predictor_depth=2), MaskConfig(), ObjectiveConfig())
    assert counted_flops(step) == training_cost(step.model, step.masks, step.objective).total


def test_memory_is_told_by_stage(capsys):
    """Every row of the table equals the formula for the given ranks and crops."""
    assert run("info", "demo", "--ranks", 4, "--micro-batch", 3, "--precision", "fp32") == 0
    told = capsys.readouterr().out
    kept = activations(StepConfig(model_size("demo"), MaskConfig(), ObjectiveConfig(), crops=3))["kept"]
    for stage in range(4):
        memory = memory_per_rank(
            count_parameters(model_size("demo")),
            zero_stage=stage,
            ranks=4,
            activation_bytes=kept,
        )
        for part in ("parameters", "gradients", "optimizer", "teacher", "activations", "total"):
            assert column(told, part)[stage] == pytest.approx(getattr(memory, part) / 2**30, abs=6e-4)
    assert "4 ranks, 3 crops at once, float32" in told


def test_variants_are_described(tmp_path, capsys):
    """A 1-D model has one band, and its own counts."""
    config = type(SMALL)(**{**SMALL.__dict__, "structure": "frames", "patch_bands": 0})
    save_release(random_model(config), config, tmp_path / "weights")
    assert run("info", tmp_path / "weights", "--count") == 0
    told = capsys.readouterr().out
    assert "16 steps x 1 bands = 16 tokens" in told
    assert "the same" in told


def test_the_nearest_size_is_offered(capsys):
    """A misspelt size gives one sentence with the nearest name."""
    assert run("info", "larg") == 2
    assert "did you mean large" in capsys.readouterr().err
    assert run("info", "nano") == 2
    assert "'nano' is neither a size (base, demo, giant, " in capsys.readouterr().err


def test_no_ranks_are_refused(capsys):
    """Zero ranks or crops are errors."""
    assert run("info", "demo", "--ranks", 0) == 2
    assert "both must be at least 1" in capsys.readouterr().err
