"""Probe bank: the readouts x seeds x learning rates of a task, trained together as batched tensors.

A probe is tiny and a bank has dozens; one after the other they would mostly reread features and launch kernels. Here
their weights are stacked, and one batch of features serves every layer, readout and learning rate. Each probe still
gets the weights that it would get alone (test: to 1e-5).

The feature of a slice has T frames; clip tasks are the case T = 1.

Legend: L layers, R rows of heads (layers, then readouts of all layers), S seeds, K learning rates, C outputs, B slices
in a batch, N slices, T frames, D width, U hidden units. Seeds differ in initial weights, batch order and dropout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distributed.marble.features.reading import FrozenFeatures, spans, standardise_features, statistics_of
from distributed.marble.probes.heads import (
    Heads,
    Variants,
    as_outputs,
    dropout_masks,
    loss_of_heads,
    new_heads,
    order,
    pool_items,
)
from distributed.marble.tasks.tasks import ProbeFit, Protocol, Readout, TargetKind

# maximum count of numbers in one pass: weights, hidden units of a batch, outputs of the validation split
MAX_NUMBERS = 250_000_000
_PLATEAU_THRESHOLD = 1e-4
# torch's `eps` of a plateau: smaller changes of the rate are skipped
_LEAST_FALL = 1e-8
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


@dataclass(frozen=True)
class Labelled:
    """Features with their targets."""

    features: FrozenFeatures
    targets: Tensor  # class numbers [N] or [N, T], or float targets [N, C] or [N, T, C]
    item_of_slice: Tensor  # item number of every slice, 0 ... items - 1.
    item_targets: Tensor  # targets of the items
    variants: Variants | None = None  # rows of the equally likely features of a slice; None if each slice has one row


# slice logits [R, S, K, N, T, C] -> a number for each head [R, S, K]; larger is better
Monitor = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Bank:
    """Trained probes."""

    heads: tuple[Heads, ...]  # heads in row order: the layers, then the other readouts
    mean_LD: Tensor  # subtracted from the features
    scale_LD: Tensor  # divisor of the features
    kept_epoch: np.ndarray  # epoch that each probe's weights are from, [R, S, K], counted from 0
    epochs: int  # number of epochs until the last probe stopped
    bf16: bool = False

    @property
    def of_layers(self) -> range:
        """Layers that `logits` needs features of."""
        return range(min(h.of_layers.start for h in self.heads), max(h.of_layers.stop for h in self.heads))

    def logits(self, features: FrozenFeatures) -> Iterator[Tensor]:
        """Yields outputs [R, S, K, N, T, C] for every slice, group of rows by group of rows to save memory."""
        for heads in self.heads:
            own = self._own(heads.of_layers)
            statistics = (self.mean_LD[own], self.scale_LD[own])
            [logits] = _all_logits([heads], features.layers(own.start, own.stop), statistics, bf16=self.bf16)
            yield logits

    def only(self, row: int, rate: int) -> "Bank":
        """Returns the probes of one row and learning rate (all seeds)."""
        within = row
        for heads in self.heads:
            if within < heads.rows:
                break
            within -= heads.rows
        chosen = heads.only(within, rate)
        layers = self._own(chosen.of_layers)
        return replace(
            self,
            heads=(chosen,),
            mean_LD=self.mean_LD[layers],
            scale_LD=self.scale_LD[layers],
            kept_epoch=self.kept_epoch[row : row + 1, :, rate : rate + 1],
        )

    def _own(self, layers: range) -> slice:
        first = self.of_layers.start
        return slice(layers.start - first, layers.stop - first)


@dataclass(frozen=True)
class Training:
    """Settings of a bank's training, without the data."""

    fit: ProbeFit
    kind: TargetKind
    outputs: int  # C
    protocol: Protocol
    name: str  # key of the random draws, so that two tasks do not share initial weights
    monitor: Monitor | None = None  # called on validation logits after every epoch; None is minus the loss of the items
    bf16: bool = False  # run forward and backward under bf16 autocast, with weights and optimiser in float32


def train_bank(training: Training, train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]) -> Bank:
    """Trains every probe of a task, in several passes if they do not fit into memory together."""
    layers, _, _, width = train.features.shape
    sizes = (width, training.outputs)
    if training.fit.standardise and training.protocol == "clean":
        mean_LD, scale_LD = statistics_of(train.features)
    else:
        mean_LD = torch.zeros(layers, width, device=train.features.device)
        scale_LD = torch.ones_like(mean_LD)
    passes = []
    for readouts, of_layers in _passes(training, train, valid):
        own = slice(of_layers.start, of_layers.stop)
        data = [
            replace(d, features=d.features.layers(own.start, own.stop).standardised(mean_LD[own], scale_LD[own]))
            for d in (train, valid)
        ]
        fresh = [new_heads(training.name, training.fit, r, of_layers=of_layers, sizes=sizes) for r in readouts]
        passes.append(_train_pass(training, fresh, *data, on_epoch=on_epoch))
    return Bank(
        heads=tuple(h for heads, _, _ in passes for h in heads),
        mean_LD=mean_LD,
        scale_LD=scale_LD,
        kept_epoch=np.concatenate([of_heads for _, of_heads, _ in passes]),
        epochs=max(epochs for _, _, epochs in passes),
        bf16=training.bf16,
    )


def _passes(training: Training, train: Labelled, valid: Labelled) -> list[tuple[tuple[Readout, ...], range]]:
    """Returns the passes as (readouts, layers): one if memory allows, else one or more per readout."""
    fit, outputs = training.fit, training.outputs
    layers, _, frames, width = train.features.shape
    heads, units = len(fit.seeds) * len(fit.learning_rates), fit.hidden or outputs
    readouts = fit.readouts_of(layers)
    # of a head: its first matrix, which has nearly all weights, hidden units of a batch, outputs of validation
    own = units * width + frames * (fit.loader_batch * units + valid.features.shape[1] * outputs)
    numbers = {r: heads * (own + (layers * width**2 if r == "reduced" else 0)) for r in readouts}
    if sum(n * (layers if r == "layers" else 1) for r, n in numbers.items()) <= MAX_NUMBERS:
        return [(readouts, range(layers))]
    passes: list[tuple[tuple[Readout, ...], range]] = []
    for readout in readouts:
        at_once = max(1, MAX_NUMBERS // numbers[readout]) if readout == "layers" else layers
        passes += [((readout,), range(i, min(i + at_once, layers))) for i in range(0, layers, at_once)]
    return passes


def _train_pass(
    training: Training, fresh: Sequence[Heads], train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]
) -> tuple[list[Heads], np.ndarray, int]:
    """Returns the kept weights, the epoch of each, and the epochs until the last probe stopped."""
    fit, device = training.fit, train.features.device
    heads = [replace(h, weights=tuple(w.to(device).requires_grad_() for w in h.weights)) for h in fresh]
    kept = [replace(h, weights=tuple(w.detach().clone() for w in h.weights)) for h in heads]
    optimisers = [StackedAdam(h.weights) for h in heads]
    rates = torch.tensor(fit.learning_rates, dtype=torch.float32, device=device)  # [K]
    rows = [h.rows for h in heads]
    shape = (sum(rows), len(fit.seeds), len(fit.learning_rates))  # [R, S, K]
    rule = StoppingRule(shape, fit=fit, protocol=training.protocol)
    epoch = 0
    while rule.running.any() and epoch < fit.max_epochs:
        # the rule lowers the rate of each head at its own plateaus
        rate_heads = (rates * torch.from_numpy(rule.rate.astype(np.float32)).to(device)).split(rows)
        for gradients in _steps(training, heads, train, epoch=epoch):
            for optimiser, gradient, rate in zip(optimisers, gradients, rate_heads, strict=True):
                optimiser.step(gradient, rate)
        keep = torch.from_numpy(rule.update(epoch, _monitor(training, heads, valid))).to(device)
        for stored, current, mask in zip(kept, heads, keep.split(rows), strict=True):
            for old, new in zip(stored.weights, current.weights, strict=True):
                old[mask] = new.detach()[mask]  # each head keeps its own epoch
        on_epoch(epoch)
        epoch += 1
    return kept, rule.kept_epoch, epoch


def _steps(
    training: Training, heads: Sequence[Heads], train: Labelled, *, epoch: int
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Yields the gradients of each step, one tuple per readout; the caller then updates the weights."""
    fit, name, slices = training.fit, training.name, len(train.targets)
    device = train.targets.device
    order_SN = torch.stack([order(name, seed, epoch, slices) for seed in fit.seeds]).to(device)
    features_SN = order_SN if train.variants is None else train.variants.drawn(name, fit.seeds, epoch, order_SN)
    for start in range(0, slices, fit.batch_size):
        added: list[tuple[Tensor, ...]] = []
        for begin in range(start, min(start + fit.batch_size, slices), fit.loader_batch):
            batch = slice(begin, min(begin + fit.loader_batch, slices))
            x_LSNTD = train.features.rows(features_SN[:, batch])  # each seed has its own slices
            rows = x_LSNTD.shape[2] * x_LSNTD.shape[3]  # N * T
            dropout = dropout_masks(name, fit, rows, (epoch, begin // fit.loader_batch))
            # [S, 1, B, ...] broadcasts against outputs [R, S, K, B, ...]
            targets = train.targets[order_SN[:, batch]].unsqueeze(1)
            found = [_gradients(training, h, x_LSNTD, targets, dropout) for h in heads]
            if added:
                found = [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(added, found, strict=True)]
            added = found
        yield added


def _gradients(
    training: Training, heads: Heads, x_LSNTD: Tensor, targets: Tensor, dropout_SRU: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns a loader batch's share of a step's gradients."""
    logits = as_outputs(heads.logits(x_LSNTD, dropout_SRU, bf16=training.bf16), training.kind)
    # heads do not share weights, so the gradient of the sum is each head's own
    loss = loss_of_heads(logits, targets, training.kind).sum()
    # upstream divides by `accumulate` even in the last step of an epoch, which has fewer batches
    return torch.autograd.grad(loss / training.fit.accumulate, heads.weights)


def _all_logits(
    heads: Sequence[Heads], features: FrozenFeatures, statistics: tuple[Tensor, Tensor] | None, *, bf16: bool
) -> list[Tensor]:
    """Returns logits [R, S, K, N, T, C] of each readout; None for features that are already standardised."""
    parts: list[list[Tensor]] = [[] for _ in heads]
    with torch.no_grad():
        for values_LNTD in spans(features):
            x_LNTD = values_LNTD if statistics is None else standardise_features(values_LNTD, *statistics)
            for part, h in zip(parts, heads, strict=True):
                part.append(h.logits(x_LNTD.unsqueeze(1), bf16=bf16))
    return [torch.cat(part, dim=3) for part in parts]  # dimension 3 is the slices


def _monitor(training: Training, heads: Sequence[Heads], valid: Labelled) -> np.ndarray:
    def minus_loss(logits: Tensor) -> np.ndarray:
        items = pool_items(logits, valid.item_of_slice, len(valid.item_targets))
        return -loss_of_heads(as_outputs(items, training.kind), valid.item_targets, training.kind).cpu().numpy()

    watch = training.monitor or minus_loss
    return np.concatenate([watch(x) for x in _all_logits(heads, valid.features, None, bf16=training.bf16)])


class StoppingRule:
    """Early stopping and the epoch that a probe keeps, for all heads; a larger monitor is better.

    Protocol clean keeps the epoch with the best monitor. Protocol marble follows MARBLE v2: its checkpoint callback has
    no monitor, so it tests the weights of the last epoch before the early stop. A plateau of the monitor lowers the
    learning rate (torch's ReduceLROnPlateau, mode max, relative threshold 1e-4).
    """

    def __init__(self, shape: tuple[int, ...], *, fit: ProbeFit, protocol: Protocol):
        self._fit = fit
        self._protocol = protocol
        # each has the shape of the heads, whose last dimension is the learning rates
        self.rate = np.ones(shape)  # factor on the learning rate
        self.running = np.ones(shape, dtype=bool)  # heads that still train
        self.best = np.full(shape, -np.inf)  # the best monitor so far
        self.kept_epoch = np.zeros(shape, dtype=np.int64)  # epoch whose weights a head keeps, counted from 0
        self._waited = np.zeros(shape, dtype=np.int64)
        self._plateau_best = np.full(shape, -np.inf)
        self._plateau_waited = np.zeros(shape, dtype=np.int64)

    def update(self, epoch: int, monitor: np.ndarray) -> np.ndarray:
        """Takes the monitors of an epoch and returns a mask of the heads whose current weights to keep."""
        was_running = self.running.copy()
        improved = was_running & (monitor > self.best)
        self.best = np.where(improved, monitor, self.best)
        self._waited = np.where(improved, 0, self._waited + 1)
        keep = was_running if self._protocol == "marble" else improved
        self.kept_epoch[keep] = epoch
        if self._protocol == "marble":
            self._lower_rates(monitor)
        self.running = was_running & (self._waited < self._fit.patience) & np.isfinite(monitor)
        return keep

    def _lower_rates(self, monitor: np.ndarray) -> None:
        improved = monitor > self._plateau_best * (1 + _PLATEAU_THRESHOLD)
        self._plateau_best = np.where(improved, monitor, self._plateau_best)
        self._plateau_waited = np.where(improved, 0, self._plateau_waited + 1)
        tired = self._plateau_waited > self._fit.plateau_patience  # strictly more, as in torch
        factor = self._fit.plateau_factor
        fall = self.rate * self._fit.learning_rates * (1 - factor)
        self.rate[tired & (fall > _LEAST_FALL)] *= factor
        self._plateau_waited[tired] = 0


class StackedAdam:
    """Adam (Kingma and Ba 2015) without weight decay, with a learning rate per head."""

    # Adam is elementwise, so stacked heads do not affect each other. `torch.optim.Adam` would need one parameter group,
    # and one small kernel, per head.

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate_heads: Tensor) -> None:
        """Updates the parameters in place; `rate_heads` has their leading shape."""
        self._steps += 1
        correction1, correction2 = 1 - _BETA1**self._steps, 1 - _BETA2**self._steps
        torch._foreach_lerp_(self._first, list(gradients), 1 - _BETA1)
        torch._foreach_mul_(self._second, _BETA2)
        torch._foreach_addcmul_(self._second, list(gradients), list(gradients), 1 - _BETA2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, correction2**0.5)
        torch._foreach_add_(scale, _EPSILON)
        for parameter, first, denominator in zip(self._parameters, self._first, scale, strict=True):
            # broadcast the rates over the trailing dimensions of the parameter
            rate = (rate_heads / correction1).reshape(*rate_heads.shape, *[1] * (parameter.ndim - rate_heads.ndim))
            parameter.addcmul_(first / denominator, rate, value=-1.0)
