"""One probe in plain torch, trained as MARBLE does: the reference of the bank in results and time.

It shares only random draws with the bank (initial weights, order, dropout), so that both can end at the same probe.
Features come from a function of the slices' numbers: MARBLE runs its encoder there, for every batch of every epoch.

Legend: N slices, B slices in a batch, L layers, T frames, D width, U hidden units, C outputs.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed.marble.probes.bank import Training
from distributed.marble.probes.heads import dropout_masks, new_heads, order
from distributed.marble.tasks.tasks import Readout, TargetKind


@dataclass(frozen=True)
class Slices:
    """A split: features [B, L, T, D] of slices by number, and the targets of all."""

    features: Callable[[Tensor], Tensor]
    targets: Tensor


@dataclass(frozen=True)
class Place:
    """Position of a probe in a grid; `layer` matters for readout "layers" only."""

    readout: Readout
    layer: int
    rate: float
    seed: int


class Probe(nn.Module):
    """Readout and head of one probe; `forward` takes [B, L, T, D] and returns [B, T, C]."""

    def __init__(self, training: Training, place: Place, *, layers: int, width: int):
        super().__init__()
        self.place = place
        self.training_of = alone(training, place)
        fit, sizes = self.training_of.fit, (width, training.outputs)
        drawn = new_heads(training.name, fit, place.readout, of_layers=range(layers), sizes=sizes).weights
        weights = [w[0, 0, 0] for w in drawn]
        self.shares = nn.Parameter(weights.pop(0).clone()) if place.readout == "weighted" else None
        pairs = [_linear(*weights[i : i + 2]) for i in range(0, len(weights), 2)]
        self.reduction = pairs.pop(0) if place.readout == "reduced" else None
        self.head = nn.ModuleList(pairs)

    def forward(self, x_BLTD: Tensor, dropout_BTU: Tensor | None = None) -> Tensor:
        """Returns the outputs; `dropout` holds factors of the hidden units."""
        x_BTD = self._read(x_BLTD)
        if len(self.head) == 2:
            x_BTD = torch.relu(self.head[0](x_BTD))
            x_BTD = x_BTD if dropout_BTU is None else x_BTD * dropout_BTU.to(x_BTD.dtype)
        return self.head[-1](x_BTD)

    def _read(self, x_BLTD: Tensor) -> Tensor:
        if self.shares is not None:
            return (self.shares.softmax(0)[:, None, None] * x_BLTD).sum(1)
        if self.reduction is not None:
            return self.reduction(torch.cat(x_BLTD.unbind(1), dim=-1))
        return x_BLTD.mean(1) if self.place.readout == "mean" else x_BLTD[:, self.place.layer]


def alone(training: Training, place: Place) -> Training:
    """Returns the training of one probe of a grid."""
    fit = replace(training.fit, readouts=(place.readout,), learning_rates=(place.rate,), seeds=(place.seed,))
    return replace(training, fit=fit)


def train_alone(probe: Probe, train: Slices, valid: Slices) -> int:
    """Trains a probe in place and returns the epoch of its weights, counted from 0."""
    training, fit = probe.training_of, probe.training_of.fit
    optimiser = torch.optim.Adam(probe.parameters(), lr=probe.place.rate)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=fit.plateau_factor, patience=fit.plateau_patience
    )
    best, waited, kept = -math.inf, 0, (0, copy.deepcopy(probe.state_dict()))
    for epoch in range(fit.max_epochs):
        _train_epoch(probe, optimiser, train, epoch)
        value = _monitor(probe, valid)
        improved = value > best
        best, waited = (value, 0) if improved else (best, waited + 1)
        if improved or training.protocol == "marble":
            kept = (epoch, copy.deepcopy(probe.state_dict()))
        if training.protocol == "marble":
            plateau.step(value)
        if waited >= fit.patience or not math.isfinite(value):
            break
    probe.load_state_dict(kept[1])
    return kept[0]


@torch.no_grad()
def outputs_of(probe: Probe, split: Slices) -> Tensor:
    """Returns the outputs for all slices [N, T, C], float32, a batch of the loader at a time."""
    batches = torch.arange(len(split.targets)).split(probe.training_of.fit.loader_batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=probe.training_of.bf16):
        return torch.cat([probe(split.features(rows_B)).float() for rows_B in batches])


def _train_epoch(probe: Probe, optimiser: torch.optim.Optimizer, train: Slices, epoch: int) -> None:
    training, fit = probe.training_of, probe.training_of.fit
    order_N = order(training.name, probe.place.seed, epoch, len(train.targets))
    batches = order_N.split(fit.loader_batch)
    for number, rows_B in enumerate(batches):
        x_BLTD = train.features(rows_B)
        frames = x_BLTD.shape[2]
        drawn = dropout_masks(training.name, fit, len(rows_B) * frames, (epoch, number))
        dropout = None if drawn is None else drawn[0].unflatten(0, (len(rows_B), frames))
        with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            outputs = probe(x_BLTD, dropout)
        loss = loss_of(outputs.float(), train.targets[rows_B], training.kind)
        (loss / fit.accumulate).backward()
        if (number + 1) % fit.accumulate == 0 or number + 1 == len(batches):
            optimiser.step()
            optimiser.zero_grad()


def _monitor(probe: Probe, valid: Slices) -> float:
    outputs = outputs_of(probe, valid)
    if probe.training_of.monitor is not None:
        return probe.training_of.monitor(outputs[None, None, None]).item()
    return -loss_of(outputs, valid.targets, probe.training_of.kind).item()


def loss_of(outputs_BTC: Tensor, targets: Tensor, kind: TargetKind) -> Tensor:
    """Returns torch's loss of a batch, without frames of class -1."""
    if kind in ("multiclass", "frame_classes"):
        return functional.cross_entropy(outputs_BTC.flatten(0, 1), targets.flatten(), ignore_index=-1)
    outputs: Any = outputs_BTC if kind == "frames" else outputs_BTC.squeeze(1)
    if kind == "regression":
        return functional.mse_loss(outputs, targets)
    return functional.binary_cross_entropy_with_logits(outputs, targets)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear
