"""Probing of one encoder on one task: train, choose on validation, then read the test split, once.

`probe` computes everything up to `Choice` from the training and validation splits. Only then does it load features of
the test split, for the chosen layer (or readout of all layers) and learning rate.

Legend: L layers, R layers and readouts of all of them, S seeds, K learning rates, N items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from distributed.marble.datasets.corpus import Slice
from distributed.marble.datasets.targets import Split, Targets, TaskData, item_targets, slice_targets
from distributed.marble.features.features import FeatureSet
from distributed.marble.features.reading import open_features
from distributed.marble.metrics.metrics import METRICS, Statistics
from distributed.marble.probes.bank import Bank, Labelled, Monitor, Training, train_bank
from distributed.marble.probes.heads import Variants, as_outputs, item_outputs
from distributed.marble.tasks.tasks import Protocol
from pupujepa.errors import UserError


@dataclass(frozen=True)
class Choice:
    """The probe to test, chosen on validation alone."""

    layer: int  # index into the probed layers followed by the readouts of all layers
    rate: int  # index into the task's learning rates
    score: float  # validation score of the choice, mean over seeds
    layer_profile: tuple[float, ...]  # best validation score of each layer and readout
    kept_epochs: tuple[int, ...]  # kept epochs of the chosen probes, one per seed, counted from 1
    epochs: int


@dataclass(frozen=True)
class ProbeJob:
    """One task on one encoder, with computed features."""

    data: TaskData
    encoder: str
    features: FeatureSet
    frame_rate_hz: float | None = None  # None when the encoder has no frames
    # numbers of the probed layers within the encoder, then the readouts of all layers
    layers: tuple[int | str, ...] = ()
    layer_names: tuple[str, ...] = ()  # their names
    digests: Mapping[str, str] = field(default_factory=dict)  # of checkpoint, corpus and features
    cost: float = 1.0  # relative work of its probes


@dataclass(frozen=True)
class ProbeOutcome:
    """Choice and test results of a job."""

    choice: Choice
    statistics: dict[str, tuple[Statistics, ...]]  # for every metric, per-item statistics of each seed
    # validation statistics of the selection metric, for each seed of the chosen probe
    validation: tuple[Statistics, ...]
    width: int  # width of the features


def probe(
    job: ProbeJob, *, protocol: Protocol, device: torch.device, on_epoch: Callable[[int], None] = lambda epoch: None
) -> ProbeOutcome:
    """Trains probes of one task on one encoder and tests the one chosen on validation."""
    data, task = job.data, job.data.task
    train, _, _ = _read(job, "train", protocol, device)
    valid, of_slices, of_items = _read(job, "valid", protocol, device)
    training = Training(
        fit=task.fit,
        kind=task.target,
        outputs=len(of_slices.classes),
        protocol=protocol,
        name=task.name,
        monitor=_upstream_monitor(data, of_slices, of_items, valid) if protocol == "marble" else None,
        bf16=protocol == "marble",
    )
    bank = train_bank(training, train, valid, on_epoch=on_epoch)
    choice = choose(data, bank, valid, of_items)
    chosen = bank.only(choice.layer, choice.rate)
    kept = replace(valid, features=valid.features.layers(chosen.of_layers.start, chosen.of_layers.stop))
    # from here on the test split is read, once, for the chosen layer alone
    test, _, of_test_items = _read(job, "test", protocol, device, layers=chosen.of_layers)
    names = (task.metric, *task.extra_metrics)
    return ProbeOutcome(
        choice=choice,
        statistics=_statistics_of_seeds(data, chosen, test, of_test_items, names),
        validation=_statistics_of_seeds(data, chosen, kept, of_items, names[:1])[task.metric],
        width=test.features.shape[-1],
    )


def choose(data: TaskData, bank: Bank, valid: Labelled, of_items: Targets) -> Choice:
    """Returns the row and learning rate with the best mean validation score over seeds."""
    scores_RSK = [
        _per_head(_item_logits(data, logits, valid), lambda x: METRICS[data.task.metric].score(x, of_items))
        for logits in bank.logits(valid.features)
    ]
    scores_RK = np.concatenate(scores_RSK).mean(axis=1)
    layer, rate = best_place(scores_RK, data)
    return Choice(
        layer=layer,
        rate=rate,
        score=float(scores_RK[layer, rate]),
        layer_profile=tuple(float(v) for v in np.nanmax(scores_RK, axis=1)),
        kept_epochs=tuple(int(e) + 1 for e in bank.kept_epoch[layer, :, rate]),
        epochs=bank.epochs,
    )


def best_place(scores_LK: np.ndarray, data: TaskData) -> tuple[int, int]:
    """Returns the layer and the option with the best validation score, the first of equals.

    Raises:
        UserError: no score is defined, e.g. because validation has a single class.
    """
    if np.isnan(scores_LK).all():
        raise UserError(
            f"task {data.task.name!r}: {data.task.metric} is not defined on the validation split "
            f"({len(data.splits['valid'].units)} items), so no layer can be chosen; use a corpus with more pieces"
        )
    layer, option = np.unravel_index(np.nanargmax(scores_LK), scores_LK.shape)
    return int(layer), int(option)


def _statistics_of_seeds(
    data: TaskData, chosen: Bank, labelled: Labelled, of_items: Targets, names: Sequence[str]
) -> dict[str, tuple[Statistics, ...]]:
    """Returns, for every metric, the statistics of each seed of the chosen probe."""
    [of_slices] = chosen.logits(labelled.features)
    logits = _item_logits(data, of_slices, labelled)
    per_seed_SN = logits[0, :, 0].cpu().numpy()  # one row and one rate are left
    return {n: tuple(METRICS[n].statistics(x, of_items) for x in per_seed_SN) for n in names}


def _read(
    job: ProbeJob, name: str, protocol: Protocol, device: torch.device, *, layers: range | None = None
) -> tuple[Labelled, Targets, Targets]:
    """Returns a split with its targets of slices and items, and features of `layers` (None: all)."""
    data, split = job.data, job.data.splits[name]
    slices = split.every_slice if split.variants else split.slices
    features = open_features(job.features, slices, framed=data.task.by_frame, layers=layers, device=device)
    frames = None if job.frame_rate_hz is None else (features.shape[2], job.frame_rate_hz)
    of_slices = slice_targets(data, split, protocol=protocol, frames=frames)
    of_items = item_targets(of_slices, split)
    labelled = Labelled(
        features,
        torch.from_numpy(of_slices.values).to(device),
        torch.from_numpy(split.item_of_slice).to(device),
        torch.from_numpy(of_items.values).to(device),
        _variants(split, slices, device),
    )
    return labelled, of_slices, of_items


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
    fit, name = data.task.fit, data.task.metric
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
