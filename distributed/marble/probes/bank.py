"""The probe bank: readouts x seeds x learning rates of a task train together, as batched tensor programs.

A probe is tiny and a bank holds dozens of them; trained one after the other they would spend their time on reading the
same features again and on starting kernels. Here their weights are stacked, one batch of features serves every layer,
readout and learning rate, and each probe still ends where it would have ended alone (test: to 1e-5).

A frozen feature is a slice of T frames, and clip tasks are the case T = 1: one program serves both.

Legend: L layers, R rows of heads (layers, then readouts of all layers), S seeds, K learning rates, C outputs, B slices
in a batch, N slices, T frames, D width, U hidden units. Seeds differ in initial weights, order of batches and dropout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distributed.marble.features.reading import FrozenFeatures, spans, standardise_features, statistics_of
from distributed.marble.probes.adam import StackedAdam
from distributed.marble.probes.draws import Variants, dropout_masks, order
from distributed.marble.probes.heads import Heads, new_heads, numbers_of
from distributed.marble.probes.outputs import as_outputs, loss_of_heads, pool_items
from distributed.marble.probes.stopping import StoppingRule
from distributed.marble.tasks.tasks import ProbeFit, Protocol, Readout, TargetKind

# numbers of one pass: weights, hidden units of a batch, outputs of the validation split
MAX_NUMBERS = 250_000_000


@dataclass(frozen=True)
class Labelled:
    """Features with what a probe is to say about them.

    Attributes:
        targets: class numbers [N] or [N, T], or float targets [N, C] or [N, T, C].
        item_of_slice: the item of every slice, 0 ... items - 1.
        item_targets: targets of the items.
        variants: where a slice has several equally likely features, their rows; None where row and slice are one.
    """

    features: FrozenFeatures
    targets: Tensor
    item_of_slice: Tensor
    item_targets: Tensor
    variants: Variants | None = None


# (slice logits [R, S, K, N, T, C]) -> one number for each head, larger is better
Monitor = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Bank:
    """Trained probes.

    Attributes:
        heads: their rows follow each other: the layers in order, then the other readouts.
        mean_LD: subtracted from the features.
        scale_LD: what they are divided by.
        best_monitor: of the epoch kept, [R, S, K].
        kept_epoch: the epoch each probe was kept from, [R, S, K], counted from 0.
        epochs: epochs until the last probe stopped.
    """

    heads: tuple[Heads, ...]
    mean_LD: Tensor
    scale_LD: Tensor
    best_monitor: np.ndarray
    kept_epoch: np.ndarray
    epochs: int
    bf16: bool = False

    @property
    def of_layers(self) -> range:
        """The layers whose features `logits` wants."""
        return range(min(h.of_layers.start for h in self.heads), max(h.of_layers.stop for h in self.heads))

    def logits(self, features: FrozenFeatures) -> Iterator[Tensor]:
        """Yields the outputs of some rows after others for every slice, [R, S, K, N, T, C]; as many as memory holds."""
        for heads in self.heads:
            own = self._place(heads.of_layers)
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
        layers = self._place(chosen.of_layers)
        rows, columns = slice(row, row + 1), slice(rate, rate + 1)
        return replace(
            self,
            heads=(chosen,),
            mean_LD=self.mean_LD[layers],
            scale_LD=self.scale_LD[layers],
            best_monitor=self.best_monitor[rows, :, columns],
            kept_epoch=self.kept_epoch[rows, :, columns],
        )

    def _place(self, layers: range) -> slice:
        first = self.of_layers.start
        return slice(layers.start - first, layers.stop - first)


@dataclass(frozen=True)
class Training:
    """What is trained and how, besides the data.

    Attributes:
        outputs: C.
        name: keys the randomness, so that two tasks do not share initial weights.
        monitor: called on validation logits after every epoch; None stands for minus the loss of the items.
        bf16: forward and backward under bf16 autocast, weights and optimiser in float32.
    """

    fit: ProbeFit
    kind: TargetKind
    outputs: int
    protocol: Protocol
    name: str
    monitor: Monitor | None = None
    bf16: bool = False


def train_bank(training: Training, train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]) -> Bank:
    """Trains every probe of a task; they go in several passes when they would not fit into memory together.

    Args:
        on_epoch: told the number of every finished epoch.
    """
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
        heads=tuple(h for p in passes for h in p.heads),
        mean_LD=mean_LD,
        scale_LD=scale_LD,
        best_monitor=np.concatenate([p.rule.best for p in passes]),
        kept_epoch=np.concatenate([p.rule.kept_epoch for p in passes]),
        epochs=max(p.epochs for p in passes),
        bf16=training.bf16,
    )


def _passes(training: Training, train: Labelled, valid: Labelled) -> list[tuple[tuple[Readout, ...], range]]:
    """Returns the readouts and layers of every pass: all in one if memory allows, else each readout by itself."""
    fit, outputs = training.fit, training.outputs
    layers, _, frames, width = train.features.shape
    heads = len(fit.seeds) * len(fit.learning_rates)
    # of a row of heads besides its weights
    row_numbers = heads * frames * (fit.loader_batch * (fit.hidden or outputs) + valid.features.shape[1] * outputs)
    readouts = fit.readouts_of(layers)
    numbers = {r: numbers_of(fit, r, layers=layers, sizes=(width, outputs)) + row_numbers for r in readouts}
    if sum(n * (layers if r == "layers" else 1) for r, n in numbers.items()) <= MAX_NUMBERS:
        return [(readouts, range(layers))]
    passes: list[tuple[tuple[Readout, ...], range]] = []
    for readout in readouts:
        at_once = max(1, MAX_NUMBERS // numbers[readout]) if readout == "layers" else layers
        passes += [((readout,), range(i, min(i + at_once, layers))) for i in range(0, layers, at_once)]
    return passes


@dataclass(frozen=True)
class _Trained:
    heads: list[Heads]
    rule: StoppingRule
    epochs: int


def _train_pass(
    training: Training, fresh: Sequence[Heads], train: Labelled, valid: Labelled, *, on_epoch: Callable[[int], None]
) -> _Trained:
    fit, device = training.fit, train.features.device
    heads = [replace(h, weights=tuple(w.to(device).requires_grad_() for w in h.weights)) for h in fresh]
    kept = [replace(h, weights=tuple(w.detach().clone() for w in h.weights)) for h in heads]
    optimisers = [StackedAdam(h.weights) for h in heads]
    rates = torch.tensor(fit.learning_rates, dtype=torch.float32, device=device)
    shape = (sum(h.rows for h in heads), len(fit.seeds), len(fit.learning_rates))
    rule = StoppingRule(shape, fit=fit, protocol=training.protocol)
    epoch = 0
    while rule.running.any() and epoch < fit.max_epochs:
        rate_heads = _by_readout(rates * torch.from_numpy(rule.rate.astype(np.float32)).to(device), heads)
        for gradients in _steps(training, heads, train, epoch=epoch):
            for optimiser, gradient, rate in zip(optimisers, gradients, rate_heads, strict=True):
                optimiser.step(gradient, rate)
        keep = torch.from_numpy(rule.update(epoch, _monitor(training, heads, valid))).to(device)
        for stored, current, mask in zip(kept, heads, _by_readout(keep, heads), strict=True):
            for old, new in zip(stored.weights, current.weights, strict=True):
                old[mask] = new.detach()[mask]
        on_epoch(epoch)
        epoch += 1
    return _Trained(kept, rule, epoch)


def _steps(
    training: Training, heads: Sequence[Heads], train: Labelled, *, epoch: int
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Yields the gradients of each step of an epoch, one tuple a readout; the weights move in between."""
    fit, name, slices = training.fit, training.name, len(train.targets)
    device = train.targets.device
    order_SN = torch.stack([order(name, seed, epoch, slices) for seed in fit.seeds]).to(device)
    features_SN = order_SN if train.variants is None else train.variants.drawn(name, fit.seeds, epoch, order_SN)
    for start in range(0, slices, fit.batch_size):
        added: list[tuple[Tensor, ...]] = []
        for begin in range(start, min(start + fit.batch_size, slices), fit.loader_batch):
            batch = slice(begin, min(begin + fit.loader_batch, slices))
            x_LSNTD = train.features.rows(features_SN[:, batch])
            rows = x_LSNTD.shape[2] * x_LSNTD.shape[3]
            dropout = dropout_masks(name, fit, rows, (epoch, begin // fit.loader_batch))
            # targets [S, B, ...] stand beside heads [R, S, K, B, ...]
            targets = train.targets[order_SN[:, batch]].unsqueeze(1)
            found = [_gradients(training, h, x_LSNTD, targets, dropout) for h in heads]
            added = [_sum(a, b) for a, b in zip(added, found, strict=True)] if added else found
        yield added


def _gradients(
    training: Training, heads: Heads, x_LSNTD: Tensor, targets: Tensor, dropout_SRU: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns a batch's share of a step's gradients; upstream divides by the whole number also where fewer follow."""
    logits = as_outputs(heads.logits(x_LSNTD, dropout_SRU, bf16=training.bf16), training.kind)
    loss = loss_of_heads(logits, targets, training.kind).sum()
    return torch.autograd.grad(loss / training.fit.accumulate, heads.weights)


def _sum(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _by_readout(values_RSK: Tensor, heads: Sequence[Heads]) -> tuple[Tensor, ...]:
    return values_RSK.split([h.rows for h in heads])


def _all_logits(
    heads: Sequence[Heads], features: FrozenFeatures, statistics: tuple[Tensor, Tensor] | None, *, bf16: bool
) -> list[Tensor]:
    """Returns logits [R, S, K, N, T, C] of each readout; without statistics the features are standardised already."""
    parts: list[list[Tensor]] = [[] for _ in heads]
    with torch.no_grad():
        for values_LNTD in spans(features):
            x_LNTD = values_LNTD if statistics is None else standardise_features(values_LNTD, *statistics)
            for part, h in zip(parts, heads, strict=True):
                part.append(h.logits(x_LNTD.unsqueeze(1), bf16=bf16))
    return [torch.cat(part, dim=3) for part in parts]


def _monitor(training: Training, heads: Sequence[Heads], valid: Labelled) -> np.ndarray:
    watch = training.monitor or _minus_loss(training, valid)
    return np.concatenate([watch(x) for x in _all_logits(heads, valid.features, None, bf16=training.bf16)])


def _minus_loss(training: Training, valid: Labelled) -> Monitor:
    def watch(logits: Tensor) -> np.ndarray:
        items = pool_items(logits, valid.item_of_slice, len(valid.item_targets))
        return -loss_of_heads(as_outputs(items, training.kind), valid.item_targets, training.kind).cpu().numpy()

    return watch
