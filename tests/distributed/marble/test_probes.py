from dataclasses import replace

import pytest
import torch

from distributed.marble.adam import StackedAdam
from distributed.marble.probes import Features, Labelled, Training, train_bank
from distributed.marble.tasks import Fit

LAYERS, SLICES, WIDTH = 3, 70, 10


def labelled(kind: str, *, seed: int, frames: int = 1) -> Labelled:
    g = torch.Generator().manual_seed(seed)
    x_LNTD = (
        torch.randn(LAYERS, SLICES, frames, WIDTH, generator=g) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1) + 2
    )
    direction = torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(99))
    signal = (x_LNTD[1] / 5 @ direction) + 0.1 * torch.randn(SLICES, frames, 3, generator=g)
    targets = {
        "multiclass": signal[:, 0].argmax(-1),
        "multilabel": (signal[:, 0] > 0.5).float(),
        "regression": signal[:, 0],
        "frames": (signal > 0.5).float(),
    }[kind]
    return Labelled(Features(x_LNTD), targets, torch.arange(SLICES), targets)


def only(data: Labelled, layer: int) -> Labelled:
    return replace(data, features=data.features.layers(layer, layer + 1))


CASES = [
    ("multiclass", 0, "clean", 1),
    ("multilabel", 0, "clean", 1),
    ("regression", 8, "clean", 1),
    ("frames", 0, "clean", 6),
    ("multiclass", 8, "marble", 1),
]


@pytest.mark.parametrize(("kind", "hidden", "protocol", "frames"), CASES)
def test_a_bank_trains_each_probe_as_if_it_were_alone(kind: str, hidden: int, protocol: str, frames: int):
    """Every (layer, seed, rate) of a bank ends within 1e-5 of the same probe trained by itself, dropout included."""
    fit = Fit(
        hidden=hidden,
        dropout=0.2 if hidden else 0.0,
        learning_rates=(1e-3, 3e-2),
        seeds=(0, 7),
        max_epochs=6,
        batch_size=16,
        patience=2,
    )
    train, valid = labelled(kind, seed=0, frames=frames), labelled(kind, seed=1, frames=frames)

    def trained(fit: Fit, train: Labelled, valid: Labelled):
        training = Training(fit=fit, kind=kind, outputs=3, protocol=protocol, name="t")
        return train_bank(training, train, valid, on_epoch=lambda epoch: None)

    bank = trained(fit, train, valid)
    together = bank.logits(valid.features)
    for layer in range(LAYERS):
        for s, seed in enumerate(fit.seeds):
            for k, rate in enumerate(fit.learning_rates):
                alone_fit = replace(fit, learning_rates=(rate,), seeds=(seed,))
                alone = trained(alone_fit, only(train, layer), only(valid, layer))
                assert alone.kept_epoch.item() == bank.kept_epoch[layer, s, k]
                torch.testing.assert_close(
                    alone.logits(only(valid, layer).features)[0, 0, 0], together[layer, s, k], rtol=1e-5, atol=1e-5
                )


def test_passes_over_layers_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """A bank that is too large for memory trains a few layers at a time and gives the same probes."""
    train, valid = labelled("multiclass", seed=0), labelled("multiclass", seed=1)
    fit = Fit(learning_rates=(1e-2,), seeds=(0,), max_epochs=3, batch_size=16)
    training = Training(fit=fit, kind="multiclass", outputs=3, protocol="clean", name="t")
    whole = train_bank(training, train, valid, on_epoch=lambda epoch: None)
    monkeypatch.setattr("distributed.marble.probes.MAX_PARAMETERS", 1)
    parts = train_bank(training, train, valid, on_epoch=lambda epoch: None)
    torch.testing.assert_close(whole.logits(valid.features), parts.logits(valid.features), rtol=1e-5, atol=1e-6)


def test_the_informative_layer_is_learned():
    """The one layer that carries the labels reaches a far better score than the others."""
    train, valid = labelled("multiclass", seed=0), labelled("multiclass", seed=1)
    fit = Fit(learning_rates=(3e-2,), seeds=(0,), max_epochs=60, batch_size=16, patience=20)
    training = Training(fit=fit, kind="multiclass", outputs=3, protocol="clean", name="t")
    bank = train_bank(training, train, valid, on_epoch=lambda epoch: None)
    hits_L = (bank.logits(valid.features)[:, 0, 0, :, 0].argmax(-1) == valid.targets).float().mean(-1)
    assert hits_L[1] > hits_L[[0, 2]].max() + 0.1


def test_stacked_adam_equals_torchs():
    """One step rule for all heads is torch's Adam for each, at its own learning rate."""
    g = torch.Generator().manual_seed(0)
    start, rates = torch.randn(4, 5, generator=g), torch.tensor([1e-3, 1e-2, 1e-1, 3e-4])
    gradients = [torch.randn(4, 5, generator=g) for _ in range(7)]
    ours = start.clone()
    adam = StackedAdam([ours])
    for gradient in gradients:
        adam.step([gradient], rates)
    for head, rate in enumerate(rates):
        theirs = start[head].clone().requires_grad_()
        optimiser = torch.optim.Adam([theirs], lr=float(rate))
        for gradient in gradients:
            theirs.grad = gradient[head].clone()
            optimiser.step()
        torch.testing.assert_close(ours[head], theirs.detach(), rtol=1e-6, atol=1e-7)
