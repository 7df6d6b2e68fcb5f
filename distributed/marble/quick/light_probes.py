"""Checks of one encoder on one task without training: kNN, few-shot and spectra, layer by layer.

Layer and number of neighbours are chosen on validation; test features are read only for the chosen ones. One layer is
in memory at a time.

Legend: N slices or items, D width, C classes, P options to choose from, V draws of labelled items, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed.marble.datasets.targets import Targets, item_targets, slice_targets
from distributed.marble.features.reading import Features, statistics_of
from distributed.marble.jobs import ProbeJob
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.metrics.resampling import central_interval, resample_weights
from distributed.marble.probes.outputs import pool_items
from distributed.marble.quick.neighbours import (
    DRAWS,
    SHOTS,
    class_mean_scores,
    draw_shots,
    knn_scores,
    neighbour_counts,
    resampled_mean,
)
from distributed.marble.quick.spectra import groups_of, lidar_of, rank_of
from distributed.marble.results.results import Row, Sampling
from distributed.marble.tasks.tasks import Protocol
from pupujepa.errors import UserError

KNN, FEW_SHOT, SPECTRUM = "knn", "few-shot", "spectrum"

# (train_ND, asked_ND), both with rows of norm 1 -> scores of the asked items [P, V, N, C]
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Check:
    """Settings of quick checks."""

    protocol: Protocol
    sampling: Sampling


@dataclass(frozen=True)
class _Method:
    """A way to score items; the row shows its facts and the chosen option."""

    name: str
    scores: Scorer
    options: tuple[dict[str, int], ...]
    facts: dict[str, int]


def check_job(job: ProbeJob, check: Check) -> list[Row]:
    """Returns the rows of one task on one encoder.

    Raises:
        UserError: the selection metric is not defined on the validation split.
    """
    features = _ItemFeatures(job)
    targets = {name: _targets(job, name, check.protocol) for name in ("train", "valid")}
    methods, selection = _methods(job, targets["train"], check.sampling.seed), METRICS[job.data.task.selection]
    profiles: list[list[np.ndarray]] = [[] for _ in methods]
    for layer in range(features.layers) if methods else ():
        train_ND, valid_ND = features.directions(layer, "valid")
        for profile_LP, method in zip(profiles, methods, strict=True):
            scores_PVNC = method.scores(train_ND, valid_ND)
            values_PV = [[selection.score(s, targets["valid"]) for s in draws] for draws in scores_PVNC]
            profile_LP.append(np.mean(values_PV, axis=1))
    rows = [_head(job, check, SPECTRUM) | _spectrum(job, features)]
    for method, profile_LP in zip(methods, profiles, strict=True):
        rows.append(_head(job, check, method.name) | _tested(job, check, features, method, np.stack(profile_LP)))
    return rows


def _methods(job: ProbeJob, train: Targets, seed: int) -> list[_Method]:
    task = job.data.task
    if task.target not in ("multiclass", "multilabel"):
        return []
    labels_NC = (
        train.values if task.target == "multilabel" else np.eye(len(train.classes), dtype=np.float32)[train.values]
    )

    def neighbours(train_ND: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
        return knn_scores(train_ND, labels_NC, asked_ND)[:, None]  # [P, 1, N, C]: no draws

    methods = [_Method(KNN, neighbours, tuple({"k": k} for k in neighbour_counts(len(labels_NC))), {})]
    if task.target == "multiclass":
        methods += [_few_shot(task.name, train, labels_NC, shots, seed) for shots in SHOTS]
    return methods


def _few_shot(task: str, train: Targets, labels_NC: np.ndarray, shots: int, seed: int) -> _Method:
    draws = [draw_shots(train.values, shots=shots, key=(seed, "few-shot", task, v)) for v in range(DRAWS)]
    counts_C = np.bincount(train.values)
    present_C = counts_C[counts_C > 0]

    def few(train_ND: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
        return np.stack([class_mean_scores(train_ND[d], labels_NC[d], asked_ND) for d in draws])[None]

    facts = {"draws": DRAWS, "classes": len(present_C), "classes_with_fewer": int((present_C < shots).sum())}
    return _Method(FEW_SHOT, few, ({"shots": shots},), facts)


def _tested(job: ProbeJob, check: Check, features: "_ItemFeatures", method: _Method, profile_LP: np.ndarray) -> Row:
    task, sampling = job.data.task, check.sampling
    if np.isnan(profile_LP).all():
        raise UserError(
            f"task {task.name!r}: {task.selection} is not defined on the validation split, so no layer can be chosen; "
            "use a corpus with more pieces"
        )
    layer, option = (int(i) for i in np.unravel_index(np.nanargmax(profile_LP), profile_LP.shape))  # first of equals
    scores_VNC = method.scores(*features.directions(layer, "test"))[option]
    metric, targets = METRICS[task.metric], _targets(job, "test", check.protocol)
    units = job.data.splits["test"].units
    weights_RN = resample_weights(units, resamples=sampling.resamples, seed=sampling.seed)
    statistics = [metric.statistics(scores_NC, targets) for scores_NC in scores_VNC]
    values_V = [metric.exact(s) for s in statistics]
    values_R = resampled_mean(np.stack([metric.resampled(s, weights_RN) for s in statistics]), seed=sampling.seed)
    return {
        **method.options[option],
        **method.facts,
        "value": float(np.mean(values_V)),
        "interval": list(central_interval(values_R)),
        "std_over_draws": float(np.std(values_V)),
        "layer": layer,
        "layer_name": job.provenance.layer_names[layer],
        "layer_profile": profile_LP.max(axis=1).tolist(),
        "validation": float(profile_LP[layer, option]),
        "train_items": len(job.data.splits["train"].units),
        "test_items": len(units),
    }


def _spectrum(job: ProbeJob, features: "_ItemFeatures") -> Row:
    """Returns RankMe and LiDAR of every layer, over the slices of the training split."""
    groups = groups_of(job.data.splits["train"])
    ranks, lidars = [], []
    for layer in range(features.layers):
        x_ND = features.slices("train", layer)
        ranks.append(rank_of(x_ND))
        if groups is not None:
            lidars.append(lidar_of(x_ND, groups))
    return {
        "rank": ranks,
        "lidar": lidars or None,
        "lidar_groups": None if groups is None else {"kind": groups.kind, "count_and_size": list(groups.rows_GQ.shape)},
        "slices": len(x_ND),
        "width": x_ND.shape[1],
        "layer_names": list(job.provenance.layer_names[: features.layers]),
    }


def _head(job: ProbeJob, check: Check, name: str) -> Row:
    return {
        "task": job.data.task.name,
        "encoder": job.subject.name,
        "protocol": check.protocol,
        "check": name,
        "metric": job.data.task.metric,
        "digests": dict(job.provenance.digests),
    }


def _targets(job: ProbeJob, name: str, protocol: Protocol) -> Targets:
    split = job.data.splits[name]
    return item_targets(slice_targets(job.data, split, protocol=protocol, frames=None), split)


@dataclass(frozen=True)
class _ItemFeatures:
    """Features of one job, read one layer at a time."""

    job: ProbeJob

    @property
    def layers(self) -> int:
        return self.job.subject.features.shape("pooled")[0]

    def slices(self, name: str, layer: int) -> Tensor:
        """Returns the time means [N, D] of a split's slices."""
        slices = self.job.data.splits[name].slices
        return self.job.subject.features.read(slices, "pooled", layers=range(layer, layer + 1))[0, :, 0]

    def directions(self, layer: int, asked: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items of the training split and of `asked`, scaled by the former, with rows of norm 1."""
        train = self._items("train", layer)
        statistics = statistics_of(train)
        return _directions(train, *statistics), _directions(self._items(asked, layer), *statistics)

    def _items(self, name: str, layer: int) -> Features:
        split = self.job.data.splits[name]
        of_slices_N1D = self.slices(name, layer)[:, None]
        return Features(pool_items(of_slices_N1D, torch.from_numpy(split.item_of_slice), len(split.units))[None])


def _directions(items: Features, mean_LD: Tensor, scale_LD: Tensor) -> np.ndarray:
    scaled_ND = items.standardised(mean_LD, scale_LD).values_LNTD[0, :, 0]
    return torch.nn.functional.normalize(scaled_ND, dim=1).numpy()
