"""Quick checks of frozen encoders without training: neighbours, a few labels, and spectra.

    python -m distributed evaluate --quick --encoders runs/demo random_init --data corpora/scores --out runs/demo

Layer and number of neighbours are chosen on validation; the test split is read once, for the choice. kNN applies to
tasks with classes or tags, few-shot to tasks with classes, spectra to all tasks on clips; frame tasks (beats, chords)
have no quick checks. Features are centred and scaled with statistics of the training split (not its labels), so that
angles are comparable between encoders of any scale. Writes OUT/quick.jsonl and OUT/quick.md.

RankMe (arXiv 2210.02885) uses all slices. LiDAR (arXiv 2312.04000) measures the variance that separates clips. Its
clips are tracks with several slices, or else pieces with several takes; without either it is undefined.

Legend: N slices or items, D width, C classes, P options to choose from, V draws of labelled items, K numbers
of neighbours, G groups, Q slices of a group, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts, to_markdown
from distributed.drawing.wording import fixed, interval
from distributed.marble.datasets.targets import Split, Targets, TaskData, item_targets, slice_targets
from distributed.marble.features.reading import Features, statistics_of
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.metrics.statistics import central_interval, resample_weights
from distributed.marble.probes.heads import pool_items
from distributed.marble.probes.probing import ProbeJob, best_place
from distributed.marble.results.results import Row, Sampling, merged_rows, only_evaluation
from distributed.marble.tasks.tasks import Protocol
from distributed.run.directory import write_atomically
from pupujepa.errors import UserError
from pupujepa.json_lines import write_rows
from pupujepa.randomness import generator
from pupujepa.training.diagnostics import effective_rank, lidar

QUICK, TABLE = "quick.jsonl", "quick.md"
KNN, FEW_SHOT, SPECTRUM = "knn", "few-shot", "spectrum"
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
SHOTS = (1, 5, 10, 20)
DRAWS = 20
# neighbours have weight exp(cosine / temperature), as in DINO's evaluation (arXiv 2104.14294)
TEMPERATURE = 0.07
# maximum rows of a singular value decomposition, spread over the split; more rows hardly change a rank
MAX_ROWS = 4096
_MOST_SLICES = 10
_SHORTEST = 1e-6


@dataclass(frozen=True)
class _Method:
    """A way to score items: `scores(train_ND, asked_ND)` takes rows of norm 1 and returns [P, V, N, C]."""

    name: str
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]
    options: tuple[dict[str, int], ...]
    facts: dict[str, int] = field(default_factory=dict)


def whole_clips(prepared: Sequence[TaskData]) -> list[TaskData]:
    """Returns the tasks on clips; raises UserError without any."""
    kept = [data for data in prepared if not data.task.by_frame]
    if not kept:
        raise UserError(
            "--quick compares whole clips, but all of these tasks label frames; "
            "name others with --tasks, or omit --quick"
        )
    return kept


def check_job(job: ProbeJob, protocol: Protocol, sampling: Sampling) -> list[Row]:
    """Returns the rows of one task on one encoder; one layer is in memory at a time."""
    task = job.data.task
    targets = {
        name: item_targets(slice_targets(job.data, split, protocol=protocol, frames=None), split)
        for name, split in job.data.splits.items()
    }
    methods, selection = _methods(task.name, task.target, targets["train"], sampling.seed), METRICS[task.metric]
    profiles: list[list[np.ndarray]] = [[] for _ in methods]
    for layer in range(job.features.shape("pooled")[0]) if methods else ():
        train_ND, valid_ND = _directions(job, layer, "valid")
        for profile_LP, method in zip(profiles, methods, strict=True):
            values_PV = [
                [selection.score(scores_NC, targets["valid"]) for scores_NC in draws]
                for draws in method.scores(train_ND, valid_ND)
            ]
            profile_LP.append(np.mean(values_PV, axis=1))
    found = [(SPECTRUM, _spectrum(job))]
    for method, profile_LP in zip(methods, profiles, strict=True):
        found.append((method.name, _tested(job, targets["test"], method, np.stack(profile_LP), sampling)))
    about = {"task": task.name, "encoder": job.encoder, "protocol": protocol}
    digests = dict(job.digests)
    return [about | {"check": name, "metric": task.metric, "digests": digests} | row for name, row in found]


def write_quick(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Writes quick.jsonl and quick.md; returns all rows, old and new."""
    with only_evaluation(folder):
        merged = merged_rows(folder / QUICK, rows, _place)
        write_rows(folder / QUICK, merged)
        write_atomically(folder / TABLE, quick_table(merged))
    return merged


def quick_table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with a line for every task, encoder and protocol."""
    lines = []
    for place in dict.fromkeys(_place(r)[:3] for r in rows):
        own = {_place(r)[3:]: r for r in rows if _place(r)[:3] == place}
        spectrum = own[SPECTRUM, None]  # every task on clips has one
        cells = [_cell(own.get((KNN, None))), *(_cell(own.get((FEW_SHOT, n))) for n in SHOTS)]
        ranks = [f"{spectrum[name][-1]:.1f}" if spectrum[name] else ABSENT.text for name in ("rank", "lidar")]
        name = f"{place[0]} ({METRICS[spectrum['metric']].title})"
        lines.append((*texts(name, place[1]), *cells, *texts(*ranks)))
    head = texts("task", "encoder", "kNN", *(f"{n}-shot" for n in SHOTS), "RankMe", "LiDAR")
    note = (
        f"No training: cosine neighbours, class means of n labelled items a class (mean of {DRAWS} draws), with 95 % "
        "intervals; RankMe and LiDAR of the last layer. Layer and k are chosen on validation."
    )
    return to_markdown([Table("Quick checks", head, (Group("", tuple(lines)),), (note,))])


def _methods(task: str, target: str, train: Targets, seed: int) -> list[_Method]:
    if target not in ("multiclass", "multilabel"):
        return []
    labels_NC = train.values if target == "multilabel" else np.eye(len(train.classes), dtype=np.float32)[train.values]
    options = tuple({"k": k} for k in neighbour_counts(len(labels_NC)))
    # [P, 1, N, C]: no draws
    methods = [_Method(KNN, lambda train_ND, asked_ND: knn_scores(train_ND, labels_NC, asked_ND)[:, None], options)]
    if target == "multiclass":
        methods += [_few_shot(task, train.values, labels_NC, shots, seed) for shots in SHOTS]
    return methods


def _few_shot(task: str, classes_N: np.ndarray, labels_NC: np.ndarray, shots: int, seed: int) -> _Method:
    draws = [draw_shots(classes_N, shots=shots, key=(seed, "few-shot", task, v)) for v in range(DRAWS)]
    _, counts_C = np.unique(classes_N, return_counts=True)

    def few(train_ND: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
        return np.stack([class_mean_scores(train_ND[d], labels_NC[d], asked_ND) for d in draws])[None]

    facts = {"draws": DRAWS, "classes": len(counts_C), "classes_with_fewer": int((counts_C < shots).sum())}
    return _Method(FEW_SHOT, few, ({"shots": shots},), facts)


def _tested(job: ProbeJob, targets: Targets, method: _Method, profile_LP: np.ndarray, sampling: Sampling) -> Row:
    """Chooses layer and option on validation, and reads the test features of that layer alone."""
    task, splits = job.data.task, job.data.splits
    layer, option = best_place(profile_LP, job.data)
    scores_VNC = method.scores(*_directions(job, layer, "test"))[option]
    metric, units = METRICS[task.metric], splits["test"].units
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
        "layer_name": job.layer_names[layer],
        "layer_profile": profile_LP.max(axis=1).tolist(),
        "validation": float(profile_LP[layer, option]),
        "train_items": len(splits["train"].units),
        "test_items": len(units),
    }


def _spectrum(job: ProbeJob) -> Row:
    """Returns RankMe and LiDAR of every layer, over the slices of the training split."""
    groups, split = groups_of(job.data.splits["train"]), job.data.splits["train"]
    layers, _, width = job.features.shape("pooled")
    ranks, lidars = zip(*(spectrum_of(_slices(job, "train", layer), groups) for layer in range(layers)), strict=True)
    return {
        "rank": list(ranks),
        "lidar": list(lidars) if groups else None,
        "lidar_groups": groups and {"kind": groups.kind, "count_and_size": list(groups.rows_GQ.shape)},
        "slices": len(split.slices),
        "width": width,
        "layer_names": list(job.layer_names[:layers]),
    }


def _slices(job: ProbeJob, name: str, layer: int) -> Tensor:
    """Returns the time means [N, D] of a split's slices."""
    return job.features.read(job.data.splits[name].slices, "pooled", layers=range(layer, layer + 1))[0, :, 0]


def _directions(job: ProbeJob, layer: int, asked: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the items of the training split and of `asked`, scaled by the former, with rows of norm 1."""
    items = []
    for name in ("train", asked):
        split = job.data.splits[name]
        of_slices_N1D = _slices(job, name, layer)[:, None]
        items.append(Features(pool_items(of_slices_N1D, torch.from_numpy(split.item_of_slice), len(split.units))[None]))
    statistics = statistics_of(items[0])
    train_ND, asked_ND = (
        torch.nn.functional.normalize(x.standardised(*statistics).values_LNTD[0, :, 0], dim=1).numpy() for x in items
    )
    return train_ND, asked_ND


def _place(row: Row) -> tuple[Any, ...]:
    return row["task"], row["encoder"], row["protocol"], row["check"], row.get("shots")


def _cell(row: Row | None) -> Cell:
    return ABSENT if row is None else Cell(fixed(row["value"]), interval(*row["interval"]))


def neighbour_counts(items: int) -> tuple[int, ...]:
    """Returns the numbers of neighbours to try with `items` training items."""
    return tuple(k for k in NEIGHBOURS if k <= items)


def knn_scores(train_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the weighted share of each class among the nearest items, [K, N, C]; rows have norm 1."""
    counts = neighbour_counts(len(train_ND))
    search = NearestNeighbors(n_neighbors=counts[-1], metric="cosine", algorithm="brute").fit(train_ND)
    distance_Nk, index_Nk = search.kneighbors(asked_ND)
    # relative to the nearest one, which avoids overflow and cancels in the shares
    weight_Nk = np.exp((distance_Nk[:, :1] - distance_Nk) / TEMPERATURE)
    votes_kNC = np.cumsum(np.swapaxes(weight_Nk[:, :, None] * labels_NC[index_Nk], 0, 1), axis=0)
    total_kN = np.cumsum(weight_Nk.T, axis=0)
    rows = [k - 1 for k in counts]
    return votes_kNC[rows] / total_kN[rows][:, :, None]


def draw_shots(classes_N: np.ndarray, *, shots: int, key: tuple[int | str, ...]) -> np.ndarray:
    """Returns the rows of `shots` random items of every class, or of all if it has fewer."""
    # the key has no encoder: all encoders get the same items
    order_N = generator(*key, shots).permutation(len(classes_N))
    drawn = [order_N[classes_N[order_N] == c][:shots] for c in np.unique(classes_N)]
    return np.concatenate(drawn)


def class_mean_scores(few_ND: np.ndarray, labels_NC: np.ndarray, asked_ND: np.ndarray) -> np.ndarray:
    """Returns the cosine between every item and the mean of each class, [N, C]; -1 for an empty class."""
    counts_C = labels_NC.sum(axis=0)
    means_CD = labels_NC.T @ few_ND / np.maximum(counts_C, 1)[:, None]
    means_CD /= np.maximum(np.linalg.norm(means_CD, axis=1, keepdims=True), _SHORTEST)
    return np.where(counts_C > 0, asked_ND @ means_CD.T, -1.0)


def resampled_mean(values_VR: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the mean over draws V of labelled items, with the draws resampled too, [R]."""
    draws, resamples = values_VR.shape
    weights_RV = generator(seed, "few-shot draws", draws).multinomial(draws, np.full(draws, 1 / draws), size=resamples)
    return (weights_RV.T * values_VR).sum(axis=0) / draws


@dataclass(frozen=True)
class Groups:
    """Groups of slices, of equal size."""

    rows_GQ: Tensor  # indices of slices in a split
    kind: str  # "tracks" or "pieces"


def groups_of(split: Split) -> Groups | None:
    """Returns the grouping that keeps most slices; None without two groups of two slices."""
    piece_of = {t.uid: t.group for t in split.tracks}
    for kind in ("tracks", "pieces"):
        rows: dict[str, list[int]] = {}
        for row, s in enumerate(split.slices):
            rows.setdefault(s.uid if kind == "tracks" else piece_of[s.uid], []).append(row)
        # groups must be equal in size: larger ones are cut, smaller ones left out
        by_size = [[r[:q] for r in rows.values() if len(r) >= q] for q in range(2, _MOST_SLICES + 1)]
        kept = max(by_size, key=lambda groups: sum(map(len, groups)))
        if len(kept) >= 2:
            return Groups(_thinned(torch.tensor(kept), MAX_ROWS // len(kept[0])), kind)
    return None


def spectrum_of(features_ND: Tensor, groups: Groups | None) -> tuple[float, float | None]:
    """Returns RankMe, of at most MAX_ROWS slices, and LiDAR, at most the number of groups minus one."""
    separated = None if groups is None else float(lidar(features_ND[groups.rows_GQ]))
    return float(effective_rank(_thinned(features_ND, MAX_ROWS))), separated


def _thinned(rows: Tensor, most: int) -> Tensor:
    return rows[:: -(-len(rows) // most)]  # every n-th, n rounded up, so that at most `most` remain
