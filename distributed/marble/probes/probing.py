"""Probing of one encoder on one task: train, choose on validation, then read the test split, once.

`probe` computes everything up to `Choice` from the training and validation splits. Only then does it load features of
the test split, for the chosen layer (or readout of all layers) and learning rate.

Legend: L layers, R layers and readouts of all of them, S seeds, K learning rates, N items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distributed.marble.datasets.corpus import Slice
from distributed.marble.datasets.targets import Split, Targets, TaskData, item_targets, slice_targets
from distributed.marble.features.features import FeatureSet
from distributed.marble.features.reading import open_features
from distributed.marble.metrics.metrics import METRICS, Statistics
from distributed.marble.probes.bank import Bank, Labelled, Monitor, Training, train_bank
from distributed.marble.probes.draws import Variants
from distributed.marble.probes.outputs import as_outputs, item_outputs
from distributed.marble.tasks.tasks import Protocol
from pupujepa.errors import UserError


@dataclass(frozen=True)
class Choice:
    """The probe to test, chosen on validation alone.

    Attributes:
        layer: index into the probed layers followed by the readouts of all layers.
        rate: index into the task's learning rates.
        score: validation score of the choice, mean over seeds.
        layer_profile: best validation score of each layer and readout.
        kept_epochs: kept epochs of the chosen probes, one per seed, counted from 1.
    """

    layer: int
    rate: int
    score: float
    layer_profile: tuple[float, ...]
    kept_epochs: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class ProbeOutcome:
    """Choice and test results of one task on one encoder.

    Attributes:
        statistics: for every metric, per-item statistics of each seed.
        units: bootstrap unit of each test item.
        validation: validation statistics of the selection metric, for each seed of the chosen probe.
        validation_units: bootstrap unit of each validation item.
        width: width of the features.
        train_items: number of items of the training split.
    """

    task: str
    encoder: str
    choice: Choice
    statistics: dict[str, tuple[Statistics, ...]]
    units: tuple[str, ...]
    validation: tuple[Statistics, ...]
    validation_units: tuple[str, ...]
    classes: tuple[str, ...]
    width: int
    train_items: int


@dataclass(frozen=True)
class Subject:
    """The features of one encoder.

    Attributes:
        frame_rate_hz: None when the encoder has no frames.
    """

    name: str
    features: FeatureSet
    frame_rate_hz: float | None


def probe(
    data: TaskData,
    subject: Subject,
    *,
    protocol: Protocol,
    device: torch.device,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> ProbeOutcome:
    """Trains probes of one task on one encoder and tests the one chosen on validation."""
    reader = _Reader(data, subject, protocol, device)
    train, _, _ = reader.read("train")
    valid, of_slices, of_items = reader.read("valid")
    monitor = _upstream_monitor(data, of_slices, of_items, valid) if protocol == "marble" else None
    training = Training(
        fit=data.task.fit,
        kind=data.task.target,
        outputs=len(of_slices.classes),
        protocol=protocol,
        name=data.task.name,
        monitor=monitor,
        bf16=protocol == "marble",
    )
    bank = train_bank(training, train, valid, on_epoch=on_epoch)
    choice = choose(data, bank, valid, of_items)
    chosen = bank.only(choice.layer, choice.rate)
    kept = valid.features.layers(chosen.of_layers.start, chosen.of_layers.stop)
    validation = _statistics_of_seeds(data, chosen, replace(valid, features=kept), of_items, (data.task.selection,))
    return _test(data, reader, chosen, choice, validation[data.task.selection])


def choose(data: TaskData, bank: Bank, valid: Labelled, of_items: Targets) -> Choice:
    """Returns the row and learning rate with the best mean validation score over seeds.

    The first of equals is chosen.

    Raises:
        UserError: no probe has a score, e.g. because validation has a single class.
    """
    scores_RSK = [
        _per_head(_item_logits(data, logits, valid), lambda x: METRICS[data.task.selection].score(x, of_items))
        for logits in bank.logits(valid.features)
    ]
    scores_RK = np.concatenate(scores_RSK).mean(axis=1)
    if np.isnan(scores_RK).all():
        raise UserError(
            f"task {data.task.name!r}: {data.task.selection} is not defined on the validation split "
            f"({len(of_items.values)} items), so no layer can be chosen; use a corpus with more pieces"
        )
    layer, rate = np.unravel_index(np.nanargmax(scores_RK), scores_RK.shape)
    return Choice(
        layer=int(layer),
        rate=int(rate),
        score=float(scores_RK[layer, rate]),
        layer_profile=tuple(float(v) for v in np.nanmax(scores_RK, axis=1)),
        kept_epochs=tuple(int(e) + 1 for e in bank.kept_epoch[layer, :, rate]),
        epochs=bank.epochs,
    )


def _test(
    data: TaskData, reader: "_Reader", chosen: Bank, choice: Choice, validation: tuple[Statistics, ...]
) -> ProbeOutcome:
    """Tests the chosen probe; the only function that reads the test split."""
    test, _, of_items = reader.read("test", layers=chosen.of_layers)
    names = (data.task.metric, *data.task.extra_metrics)
    return ProbeOutcome(
        task=data.task.name,
        encoder=reader.subject.name,
        choice=choice,
        statistics=_statistics_of_seeds(data, chosen, test, of_items, names),
        units=data.splits["test"].units,
        validation=validation,
        validation_units=data.splits["valid"].units,
        classes=of_items.classes,
        width=test.features.shape[-1],
        train_items=len(data.splits["train"].units),
    )


def _statistics_of_seeds(
    data: TaskData, chosen: Bank, labelled: Labelled, of_items: Targets, names: Sequence[str]
) -> dict[str, tuple[Statistics, ...]]:
    """Returns, for every metric, the statistics of each seed of the chosen probe."""
    [of_slices] = chosen.logits(labelled.features)
    logits = _item_logits(data, of_slices, labelled)
    per_seed_SN = logits[0, :, 0].cpu().numpy()  # one row and one rate are left
    return {n: tuple(METRICS[n].statistics(x, of_items) for x in per_seed_SN) for n in names}


@dataclass(frozen=True)
class _Reader:
    data: TaskData
    subject: Subject
    protocol: Protocol
    device: torch.device

    def read(self, name: str, layers: range | None = None) -> tuple[Labelled, Targets, Targets]:
        """Returns a split with its targets of slices and items, and features of `layers` (None: all)."""
        split = self.data.splits[name]
        slices = split.every_slice if split.variants else split.slices
        framed = self.data.task.by_frame
        features = open_features(self.subject.features, slices, framed=framed, layers=layers, device=self.device)
        of_slices = self._targets(split, features.shape[2])
        of_items = item_targets(of_slices, split)
        labelled = Labelled(
            features,
            torch.from_numpy(of_slices.values).to(self.device),
            torch.from_numpy(split.item_of_slice).to(self.device),
            torch.from_numpy(of_items.values).to(self.device),
            _variants(split, slices, self.device),
        )
        return labelled, of_slices, of_items

    def _targets(self, split: Split, num_frames: int) -> Targets:
        rate_hz = self.subject.frame_rate_hz
        frames = None if rate_hz is None else (num_frames, rate_hz)
        return slice_targets(self.data, split, protocol=self.protocol, frames=frames)


def _variants(split: Split, slices: Sequence[Slice], device: torch.device) -> Variants | None:
    if not split.variants:
        return None
    row_of = {s: row for row, s in enumerate(slices)}
    most = max(len(v) for v in split.variants)
    rows = [[row_of[s] for s in v] + [0] * (most - len(v)) for v in split.variants]  # padding is never drawn
    counts = [len(v) for v in split.variants]
    return Variants(torch.tensor(rows, device=device), torch.tensor(counts, device=device))


def _upstream_monitor(data: TaskData, of_slices: Targets, of_items: Targets, valid: Labelled) -> Monitor:
    """Returns MARBLE's monitor: the metric, for most tasks averaged over batches of slices."""
    fit, name = data.task.fit, data.task.selection
    batch = fit.loader_batch

    def of_batches(logits: np.ndarray) -> float:
        rows = [np.arange(s, min(s + batch, len(logits))) for s in range(0, len(logits), batch)]
        values = np.array([METRICS[name].score(logits[r], of_slices.take(r)) for r in rows])
        sizes = np.array([len(r) for r in rows], dtype=np.float64)
        # upstream weights batches by their slices; undefined batches are left out
        defined = ~np.isnan(values)
        return float(np.average(values[defined], weights=sizes[defined])) if defined.any() else np.nan

    if fit.batch_mean_monitor:
        return lambda logits: _per_head(as_outputs(logits, data.task.target), of_batches)
    return lambda logits: _per_head(_item_logits(data, logits, valid), lambda x: METRICS[name].score(x, of_items))


def _item_logits(data: TaskData, logits: Tensor, labelled: Labelled) -> Tensor:
    return item_outputs(data.task, logits, labelled.item_of_slice, len(labelled.item_targets))


def _per_head(logits: Tensor, score: Callable[[np.ndarray], float]) -> np.ndarray:
    """Applies `score` to the logits of every head, [L, S, K, ...] -> [L, S, K]."""
    values = logits.cpu().numpy()
    heads = values.reshape(-1, *values.shape[3:])
    return np.array([score(head) for head in heads]).reshape(values.shape[:3])
