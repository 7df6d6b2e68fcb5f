from dataclasses import replace

import pytest
import torch

from benchmarks.probe_alone import Place, Probe, Slices, outputs_of, train_alone
from distributed.marble.features.reading import Features
from distributed.marble.probes.bank import Bank, Labelled, StackedAdam, Training, train_bank
from distributed.marble.probes.heads import new_heads
from distributed.marble.tasks.tasks import ProbeFit, Readout

LAYERS, SLICES, WIDTH = 3, 70, 10
READOUTS: tuple[Readout, ...] = ("layers", "mean", "weighted", "reduced")


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
        # frames whose class nobody knows, of unlike numbers in every batch
        "frame_classes": torch.where(signal[..., 0] > 0, -1, signal.argmax(-1)),
    }[kind]
    return Labelled(Features(x_LNTD), targets, torch.arange(SLICES), targets)


def trained(training: Training, train: Labelled, valid: Labelled) -> Bank:
    return train_bank(training, train, valid, on_epoch=lambda epoch: None)


def logits_of(bank: Bank, data: Labelled) -> torch.Tensor:
    return torch.cat(list(bank.logits(data.features)))


def places(fit: ProbeFit) -> list[tuple[tuple[int, int, int], Place]]:
    """Every probe of a bank: its index [R, S, K] and its description."""
    rows = [("layers", layer) for layer in range(LAYERS)] + [(r, 0) for r in fit.readouts if r != "layers"]
    return [
        ((r, s, k), Place(readout, layer, rate, seed))
        for r, (readout, layer) in enumerate(rows)
        for s, seed in enumerate(fit.seeds)
        for k, rate in enumerate(fit.learning_rates)
    ]


def by_slice(data: Labelled, like: Labelled | None = None) -> Slices:
    """The same data for a probe in plain torch; mean and deviation of `like` scale the features."""
    x_LNTD = data.features.values_LNTD
    if like is not None:
        of_LNTD = like.features.values_LNTD.double()
        mean, deviation = of_LNTD.mean((1, 2), keepdim=True), of_LNTD.std((1, 2), keepdim=True, correction=0)
        x_LNTD = (x_LNTD - mean.float()) / deviation.float()
    return Slices(lambda rows_B: x_LNTD[:, rows_B].transpose(0, 1), data.targets)


# kind, hidden units, protocol, frames, accumulate, the larger rate. Adam turns the sign of a gradient that is next to
# nothing into a whole step, which regression at a large rate drives into: there two right programs part
CASES = [
    ("multiclass", 0, "clean", 1, 1, 1e-2),
    ("multilabel", 0, "clean", 1, 1, 1e-2),
    ("regression", 8, "clean", 1, 1, 1e-3),
    ("frames", 0, "clean", 6, 1, 1e-2),
    ("multiclass", 8, "marble", 1, 1, 1e-2),
    ("frame_classes", 8, "marble", 6, 4, 1e-2),
]


@pytest.mark.parametrize(("kind", "hidden", "protocol", "frames", "accumulate", "rate"), CASES)
def test_a_bank_trains_each_probe_as_plain_torch_trains_it_alone(kind, hidden, protocol, frames, accumulate, rate):
    """Every (layer or readout, seed, rate) is within 1e-5 of the same probe in torch.nn with torch.optim.Adam.

    Dropout, stopping, plateaus, and the gradients of the reference's small batches included: 70 slices in batches of 4,
    four to a step, leave a group of two batches, of which the last has two slices, at the end of each epoch.
    """
    fit = ProbeFit(
        hidden=hidden,
        dropout=0.2 if hidden else 0.0,
        readouts=READOUTS,
        learning_rates=(rate / 3, rate),
        seeds=(0, 7),
        max_epochs=6,
        batch_size=16,
        accumulate=accumulate,
        patience=2,
        plateau_patience=0,
    )
    train, valid = labelled(kind, seed=0, frames=frames), labelled(kind, seed=1, frames=frames)
    training = Training(fit=fit, kind=kind, outputs=3, protocol=protocol, name="t")
    bank = trained(training, train, valid)
    together = logits_of(bank, valid)
    like = train if protocol == "clean" else None
    for place, which in places(fit):
        probe = Probe(training, which, layers=LAYERS, width=WIDTH)
        assert train_alone(probe, by_slice(train, like), by_slice(valid, like)) == bank.kept_epoch[place]
        outputs = outputs_of(probe, by_slice(valid, like))
        torch.testing.assert_close(together[place], outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_hardware", [True, False])
def test_heads_train_under_bf16_autocast_as_upstream(monkeypatch: pytest.MonkeyPatch, in_hardware):
    """Outputs are bf16, weights and optimiser stay float32, and torch's own autocast gives the same probes.

    They agree to the precision of bf16: a sum in another order may round to its other neighbour. Where the hardware has
    no bf16, the same roundings are made around float32 products.
    """
    monkeypatch.setattr("distributed.marble.probes.heads._multiplies_bf16", lambda device: in_hardware)
    fit = ProbeFit(
        hidden=16, dropout=0.2, readouts=READOUTS, learning_rates=(1e-2,), seeds=(0,), max_epochs=3, batch_size=8
    )
    train, valid = labelled("multiclass", seed=0), labelled("multiclass", seed=1)
    training = Training(fit=fit, kind="multiclass", outputs=3, protocol="marble", name="t", bf16=True)
    bank = trained(training, train, valid)
    together = logits_of(bank, valid)
    assert torch.equal(together, together.bfloat16().float())
    assert not torch.equal(together, logits_of(trained(replace(training, bf16=False), train, valid), valid))
    for heads in bank.heads:
        assert all(w.dtype == torch.float32 and not torch.equal(w, w.bfloat16().float()) for w in heads.weights)
    for place, which in places(fit):
        probe = Probe(training, which, layers=LAYERS, width=WIDTH)
        train_alone(probe, by_slice(train), by_slice(valid))
        outputs = outputs_of(probe, by_slice(valid))
        torch.testing.assert_close(together[place], outputs, rtol=0.1, atol=0.1)


def test_passes_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """A bank too large for memory trains one layer or readout at a time and gives the same probes."""
    train, valid = labelled("multiclass", seed=0), labelled("multiclass", seed=1)
    fit = ProbeFit(readouts=READOUTS, learning_rates=(1e-2,), seeds=(0,), max_epochs=3, batch_size=16)
    training = Training(fit=fit, kind="multiclass", outputs=3, protocol="clean", name="t")
    whole = trained(training, train, valid)
    monkeypatch.setattr("distributed.marble.probes.bank.MAX_NUMBERS", 1)
    parts = trained(training, train, valid)
    assert (len(whole.heads), len(parts.heads)) == (4, 6)
    torch.testing.assert_close(logits_of(whole, valid), logits_of(parts, valid), rtol=1e-5, atol=1e-6)
    for row in range(6):
        chosen = parts.only(row, 0)
        own = valid.features.layers(chosen.of_layers.start, chosen.of_layers.stop)
        assert len(chosen.of_layers) == (1 if row < LAYERS else LAYERS)
        torch.testing.assert_close(next(chosen.logits(own))[0], logits_of(parts, valid)[row])


def test_the_informative_layer_is_learned():
    """The layer with the labels scores far better than the others, and the weighted sum selects it."""
    train, valid = labelled("multiclass", seed=0), labelled("multiclass", seed=1)
    fit = ProbeFit(readouts=READOUTS, learning_rates=(3e-2,), seeds=(0,), max_epochs=60, batch_size=16, patience=20)
    bank = trained(Training(fit=fit, kind="multiclass", outputs=3, protocol="clean", name="t"), train, valid)
    hits_R = (logits_of(bank, valid)[:, 0, 0, :, 0].argmax(-1) == valid.targets).float().mean(-1)
    assert hits_R[1] > hits_R[[0, 2]].max() + 0.1
    [shares_L] = bank.heads[2].weights[0].softmax(-1).flatten(0, 2)
    assert shares_L.argmax() == 1


def test_stacked_adam_equals_torchs():
    """StackedAdam equals torch's Adam for each head at its own learning rate."""
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


@pytest.mark.parametrize("hidden", [0, 8])
def test_rounding_float32_products_is_bf16_autocast(monkeypatch: pytest.MonkeyPatch, hidden):
    """Outputs and every gradient equal those of bf16 products to one rounding, 2^-8 of the largest value."""
    g = torch.Generator().manual_seed(0)
    x_LSNTD = torch.randn(LAYERS, 1, SLICES, 1, WIDTH, generator=g)
    fit = ProbeFit(hidden=hidden, readouts=("layers",), learning_rates=(1e-2,), seeds=(0,))
    results = []
    for in_hardware in (True, False):
        monkeypatch.setattr(
            "distributed.marble.probes.heads._multiplies_bf16", lambda device, answer=in_hardware: answer
        )
        heads = new_heads("t", fit, "layers", of_layers=range(LAYERS), sizes=(WIDTH, 3))
        weights = [w.requires_grad_() for w in heads.weights]
        out = heads.logits(x_LSNTD, bf16=True)
        results.append([out, *torch.autograd.grad(out.square().sum(), weights)])
    for hardware, rounded in zip(*results, strict=True):
        assert hardware.dtype == rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, hardware, rtol=0, atol=2**-8 * float(hardware.detach().abs().max()))
