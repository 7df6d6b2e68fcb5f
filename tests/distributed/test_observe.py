"""What a logged step shows of its own crops, against the functions of pupujepa/diagnostics.py."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distributed.observe import StepObserver
from pupujepa import diagnostics
from pupujepa.masks import STRATEGIES

BANDS, CROPS, TARGETS, WIDTH = 4, 12, 16, 8


@pytest.fixture
def alone(monkeypatch):
    """One rank, without a process group."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)


def micro_batch(seed, strategies):
    rng = torch.Generator().manual_seed(seed)
    crops = len(strategies)
    target = torch.stack([torch.randperm(64, generator=rng)[:TARGETS] for _ in range(crops)])
    truth = torch.randn(crops, TARGETS, WIDTH, generator=rng) + torch.arange(WIDTH)
    guess = truth + 0.5 * torch.randn(crops, TARGETS, WIDTH, generator=rng)
    uids = [f"{'studio' if i % 3 else 'live'}/track{i}" for i in range(crops)]
    batch = SimpleNamespace(target=target, strategy=torch.tensor(strategies), uids=uids)
    loss_B = torch.rand(crops, generator=rng)
    return batch, {"prediction_BMD": guess, "target_BMD": truth, "per_sample_loss_B": loss_B}


def engine_with(gradients):
    module = nn.Module()
    for name, gradient in gradients.items():
        part = nn.Module()
        part.weight = nn.Parameter(torch.zeros_like(gradient))
        part.weight.grad = gradient
        setattr(module, name, part)
    return SimpleNamespace(module=module, device=torch.device("cpu"), zero_optimization_stage=lambda: 0)


GRADIENTS = {"patch_embed": torch.tensor([3.0, 4.0]), "student": torch.tensor([0.0]), "predictor": torch.ones(9)}


@pytest.fixture
def observed(alone):
    """A step of two micro-batches, and all of it as one."""
    observer = StepObserver(bands=BANDS, corpora=("studio", "live"))
    parts = [micro_batch(0, [0, 1] * 3), micro_batch(1, [1, 0] * 3)]
    for part in parts:
        observer.after_forward(*part)
    observer.after_backward(engine_with(GRADIENTS))
    batches, auxes = zip(*parts, strict=True)
    whole = {name: torch.cat([aux[name] for aux in auxes]) for name in auxes[0]}
    whole |= {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("target", "strategy")}
    return observer.row(), whole | {"uids": [uid for batch in batches for uid in batch.uids]}


def test_explained_variance_is_that_of_all_micro_batches_together(observed):
    """Beyond the best constant: over all, for each strategy that came, for each band."""
    row, whole = observed
    guess, truth = whole["prediction_BMD"], whole["target_BMD"]

    def close(name, expected):
        assert row[f"batch/explained_variance{name}"] == pytest.approx(float(expected), abs=1e-5)

    close("", diagnostics.explained_variance(guess, truth))
    for strategy in (0, 1):
        rows = whole["strategy"] == strategy
        close(f"_{STRATEGIES[strategy]}", diagnostics.explained_variance(guess[rows], truth[rows]))
    assert f"batch/explained_variance_{STRATEGIES[2]}" not in row
    per_band = diagnostics.explained_variance_per_band(guess, truth, whole["target"], bands=BANDS)
    for band in range(BANDS):
        close(f"_band_{band}", per_band[band])


def test_spread_and_angle_are_those_of_the_probe_set(observed):
    """The same definitions, from sums that need no second pass."""
    row, whole = observed
    for which in ("target", "prediction"):
        tokens = whole[f"{which}_BMD"].flatten(0, 1)
        assert row[f"batch/std_{which}"] == pytest.approx(float(diagnostics.normalised_std(tokens)), abs=1e-5)
        assert row[f"batch/cosine_{which}"] == pytest.approx(float(diagnostics.mean_cosine(tokens)), abs=1e-5)


def test_losses_by_corpus(observed):
    """Of a mix, the mean over each corpus's crops."""
    row, whole = observed
    for name in ("studio", "live"):
        rows = torch.tensor([uid.startswith(f"{name}/") for uid in whole["uids"]])
        assert row[f"mix/{name}/loss"] == pytest.approx(float(whole["per_sample_loss_B"][rows].double().mean()))


def test_a_single_corpus_has_no_loss_of_its_own(alone):
    """It would be the loss again."""
    observer = StepObserver(bands=BANDS, corpora=("",))
    observer.after_forward(*micro_batch(0, [0, 1]))
    observer.after_backward(engine_with(GRADIENTS))
    assert not [name for name in observer.row() if name.startswith("mix/")]


def test_gradients_by_module(observed):
    """L2 norms; a module without any has none."""
    row, _ = observed
    norms = {name: row[f"grad_norm/{name}"] for name in GRADIENTS}
    assert norms == {"patch_embed": pytest.approx(5.0), "student": 0.0, "predictor": pytest.approx(3.0)}
