"""The probe bank: all layers x seeds x learning rates of a task train together, as one batched tensor program.

A probe is tiny and a bank holds dozens of them; trained one after the other they would spend their time on reading the
same features again and on starting kernels. Here their weights are stacked, one batch of features serves every learning
rate, and each probe still ends where it would have ended alone (test: to 1e-5).

A frozen feature is a slice of T frames, and clip tasks are the case T = 1: one program serves both.

Legend: L layers, S seeds, K learning rates, C outputs, B slices in a batch, N slices, T frames, D width, U hidden
units. Heads are [L, S, K]. Seeds differ in initial weights, order of batches and dropout.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from distributed.marble.adam import StackedAdam
from distributed.marble.draws import Variants, dropout_masks, initial_weights, order
from distributed.marble.outputs import as_outputs, loss_of_heads, pool_items
from distributed.marble.stopping import StoppingRule
from distributed.marble.tasks import Fit, Protocol, TargetKind

log = logging.getLogger(__name__)

EVALUATION_FRAMES = 8192
MAX_PARAMETERS = 250_000_000


@dataclass(frozen=True)
class Features:
    """Frozen features of some slices, [L, N, T, D]; any float type."""

    values_LNTD: Tensor

    @property
    def num_layers(self) -> int:
        """Layers."""
        return self.values_LNTD.shape[0]

    @property
    def num_slices(self) -> int:
        """Slices."""
        return self.values_LNTD.shape[1]

    def layers(self, start: int, stop: int) -> "Features":
        """Returns a range of layers."""
        return Features(self.values_LNTD[start:stop])


@dataclass(frozen=True)
class Labelled:
    """Features with what a probe is to say about them.

    Attributes:
        targets: class numbers [N], or float targets [N, C] or [N, T, C].
        item_of_slice: the item of every slice, 0 ... items - 1.
        item_targets: targets of the items.
        variants: where a slice has several equally likely features, their rows; None where row and slice are one.
    """

    features: Features
    targets: Tensor
    item_of_slice: Tensor
    item_targets: Tensor
    variants: Variants | None = None


# (slice logits [L, S, K, N, T, C]) -> one number for each head, larger is better
Monitor = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Bank:
    """Trained probes.

    Attributes:
        weights: one or two (weight, bias) pairs; their leading dimensions are [L, S, K].
        mean_LD: subtracted from the features.
        scale_LD: what they are divided by.
        best_monitor: of the epoch kept, [L, S, K].
        kept_epoch: the epoch each probe was kept from, [L, S, K], counted from 0.
        epochs: epochs until the last probe stopped.
    """

    weights: tuple[Tensor, ...]
    mean_LD: Tensor
    scale_LD: Tensor
    best_monitor: np.ndarray
    kept_epoch: np.ndarray
    epochs: int

    def logits(self, features: Features) -> Tensor:
        """Returns the outputs of every probe for every slice, [L, S, K, N, T, C]."""
        return _all_logits(self.weights, features, (self.mean_LD, self.scale_LD))

    def only(self, layer: int, rate: int) -> "Bank":
        """Returns the probes of one layer and learning rate (all seeds)."""
        rows, columns = slice(layer, layer + 1), slice(rate, rate + 1)
        return Bank(
            weights=tuple(w[rows, :, columns] for w in self.weights),
            mean_LD=self.mean_LD[rows],
            scale_LD=self.scale_LD[rows],
            best_monitor=self.best_monitor[rows, :, columns],
            kept_epoch=self.kept_epoch[rows, :, columns],
            epochs=self.epochs,
        )


@dataclass(frozen=True)
class Training:
    """What is trained and how, besides the data.

    Attributes:
        outputs: C.
        name: keys the randomness, so that two tasks do not share initial weights.
        monitor: called on validation logits after every epoch; None stands for minus the loss of the items.
    """

    fit: Fit
    kind: TargetKind
    outputs: int
    protocol: Protocol
    name: str
    monitor: Monitor | None = None


def train_bank(training: Training, train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]) -> Bank:
    """Trains every probe of a task; layers go in several passes when their weights would not fit into memory.

    Args:
        on_epoch: told the number of every finished epoch.
    """
    layers, width = train.features.num_layers, train.features.values_LNTD.shape[-1]
    fit = training.fit
    parameters_per_layer = (
        (fit.hidden or training.outputs) * width * len(fit.seeds) * len(fit.learning_rates)
    )  # the first matrix is nearly all of it
    layers_per_pass = max(1, MAX_PARAMETERS // parameters_per_layer)
    banks = []
    for start in range(0, layers, layers_per_pass):
        stop = min(start + layers_per_pass, layers)
        part = (_with_layers(train, start, stop), _with_layers(valid, start, stop))
        banks.append(_train_pass(training, *part, on_epoch=on_epoch))
    return _concatenate(banks)


def _train_pass(training: Training, train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]) -> Bank:
    fit = training.fit
    shape = (train.features.num_layers, len(fit.seeds), len(fit.learning_rates))
    statistics = _statistics(train.features, standardise=fit.standardise and training.protocol == "clean")
    train, valid = _standardised(train, statistics), _standardised(valid, statistics)
    weights = initial_weights(training.name, fit, shape, (train.features.values_LNTD.shape[-1], training.outputs))
    weights = tuple(w.to(train.features.values_LNTD.device).requires_grad_() for w in weights)
    kept = tuple(w.detach().clone() for w in weights)
    optimiser = StackedAdam(weights)
    rates = torch.tensor(fit.learning_rates, dtype=torch.float32, device=weights[0].device)
    rule = StoppingRule(shape, fit=fit, protocol=training.protocol)
    epoch = 0
    while rule.running.any() and epoch < fit.max_epochs:
        rate_heads = rates * torch.from_numpy(rule.rate.astype(np.float32)).to(rates.device)
        step = partial(optimiser.step, rate_heads=rate_heads)
        _train_epoch(training, weights, train, epoch=epoch, step=step)
        keep = rule.update(epoch, _monitor(training, weights, valid))
        mask = torch.from_numpy(keep).to(rates.device)
        for stored, current in zip(kept, weights, strict=True):
            stored[mask] = current.detach()[mask]
        on_epoch(epoch)
        epoch += 1
    return Bank(kept, *statistics, best_monitor=rule.best, kept_epoch=rule.kept_epoch, epochs=epoch)


def _train_epoch(
    training: Training,
    weights: tuple[Tensor, ...],
    train: Labelled,
    *,
    epoch: int,
    step: Callable[[tuple[Tensor, ...]], None],
) -> None:
    fit, name, slices = training.fit, training.name, len(train.targets)
    order_SN = torch.stack([order(name, seed, epoch, slices) for seed in fit.seeds]).to(train.targets.device)
    features_SN = order_SN if train.variants is None else train.variants.drawn(name, fit.seeds, epoch, order_SN)
    for number, start in enumerate(range(0, slices, fit.batch_size)):
        rows_SB = order_SN[:, start : start + fit.batch_size]
        x_LSNTD = train.features.values_LNTD[:, features_SN[:, start : start + fit.batch_size]]
        dropout = dropout_masks(name, fit, rows_SB.shape[1] * x_LSNTD.shape[3], (epoch, number))
        logits = as_outputs(_forward(weights, x_LSNTD, dropout), training.kind)
        # targets [S, B, ...] stand beside heads [L, S, K, B, ...]
        targets = train.targets[rows_SB].unsqueeze(1)
        loss = loss_of_heads(logits, targets, training.kind)
        step(torch.autograd.grad(loss.sum(), weights))


def _forward(weights: tuple[Tensor, ...], x_LSNTD: Tensor, dropout_SRU: Tensor | None) -> Tensor:
    """Returns logits [L, S, K, N, T, C]; `x` is [L, S, N, T, D], or [L, 1, N, T, D] for all seeds alike."""
    first, bias = weights[:2]
    layers, seeds, heads, units, width = first.shape
    slices, frames = x_LSNTD.shape[2:4]
    rows_GRD = x_LSNTD.expand(layers, seeds, *x_LSNTD.shape[2:]).reshape(layers * seeds, slices * frames, width)
    # weights on the left: the gradient of a right operand this narrow is an order of magnitude slower
    out = torch.bmm(first.reshape(layers * seeds, heads * units, width), rows_GRD.transpose(1, 2))
    out = out.reshape(layers, seeds, heads, units, slices * frames).transpose(3, 4) + bias.unsqueeze(-2)
    if len(weights) == 4:
        hidden = torch.relu(out)
        if dropout_SRU is not None:
            hidden = hidden * dropout_SRU.to(hidden.device)[None, :, None]
        out = torch.matmul(hidden, weights[2].transpose(-1, -2)) + weights[3].unsqueeze(-2)
    return out.reshape(layers, seeds, heads, slices, frames, -1)


def _all_logits(weights: tuple[Tensor, ...], features: Features, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """Returns logits [L, S, K, N, T, C]; without statistics the features are standardised already."""
    frames = features.values_LNTD.shape[2]
    per_pass = max(1, EVALUATION_FRAMES // frames)
    parts = []
    with torch.no_grad():
        for start in range(0, features.num_slices, per_pass):
            x_LNTD = features.values_LNTD[:, start : start + per_pass]
            x_LNTD = x_LNTD if statistics is None else _standardise(x_LNTD, statistics)
            parts.append(_forward(weights, x_LNTD.unsqueeze(1), None))
    return torch.cat(parts, dim=3)


def _monitor(training: Training, weights: tuple[Tensor, ...], valid: Labelled) -> np.ndarray:
    logits = _all_logits(tuple(w.detach() for w in weights), valid.features, None)
    if training.monitor is not None:
        return training.monitor(logits)
    items = pool_items(logits, valid.item_of_slice, len(valid.item_targets))
    return -loss_of_heads(as_outputs(items, training.kind), valid.item_targets, training.kind).cpu().numpy()


def _statistics(features: Features, *, standardise: bool) -> tuple[Tensor, Tensor]:
    """Returns mean and scale [L, D]; 0 and 1 without standardisation."""
    layers, slices, frames, width = features.values_LNTD.shape
    device = features.values_LNTD.device
    if not standardise:
        return torch.zeros(layers, width, device=device), torch.ones(layers, width, device=device)
    total_LD = torch.zeros(layers, width, dtype=torch.float64, device=device)
    squares_LD = torch.zeros_like(total_LD)
    per_pass = max(1, EVALUATION_FRAMES // frames)
    for start in range(0, slices, per_pass):
        x_LND = features.values_LNTD[:, start : start + per_pass].double().flatten(1, 2)
        total_LD += x_LND.sum(1)
        squares_LD += x_LND.square().sum(1)
    mean_LD = total_LD / (slices * frames)
    spread_LD = (squares_LD / (slices * frames) - mean_LD.square()).clamp_min(0).sqrt()
    # a dimension that does not vary says nothing; dividing by its rounding error would make it shout
    scale_LD = torch.where(spread_LD > 1e-6 * (1 + mean_LD.abs()), spread_LD, torch.ones_like(spread_LD))
    return mean_LD.float(), scale_LD.float()


def _standardised(labelled: Labelled, statistics: tuple[Tensor, Tensor]) -> Labelled:
    return replace(labelled, features=Features(_standardise(labelled.features.values_LNTD, statistics)))


def _standardise(x_LNTD: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    mean_LD, scale_LD = (s[:, None, None, :] for s in statistics)
    return x_LNTD.float().sub(mean_LD).div_(scale_LD)


def _with_layers(labelled: Labelled, start: int, stop: int) -> Labelled:
    return replace(labelled, features=labelled.features.layers(start, stop))


def _concatenate(banks: list[Bank]) -> Bank:
    return Bank(
        weights=tuple(torch.cat(parts) for parts in zip(*(b.weights for b in banks), strict=True)),
        mean_LD=torch.cat([b.mean_LD for b in banks]),
        scale_LD=torch.cat([b.scale_LD for b in banks]),
        best_monitor=np.concatenate([b.best_monitor for b in banks]),
        kept_epoch=np.concatenate([b.kept_epoch for b in banks]),
        epochs=max(b.epochs for b in banks),
    )
