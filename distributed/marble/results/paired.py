"""Paired differences between two encoders, from the resampled values of their evaluations.

Two rows are paired if every resample drew the same items equally often: same task, protocol, metric, corpus, units and
seed. Otherwise the result names the difference instead of a number.

Legend: R resamples, M metrics of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distributed.marble.metrics.resampling import central_interval
from distributed.marble.results.results import RESULTS, Row, read_resamples, read_results
from pupujepa.errors import UserError


@dataclass(frozen=True)
class PairedEntry:
    """A row of results with its resampled values.

    Attributes:
        label: the encoder's name, with its folder if two encoders have that name.
        values_MR: values of the metrics in the row's bootstrap; None if an older evaluation kept none.
    """

    label: str
    row: Row
    values_MR: np.ndarray | None

    def scored(self, metric: str) -> Row:
        """Returns the `value` and `interval` of one of the row's metrics."""
        return self.row if metric == self.row["metric"] else self.row["extra"][metric]


def read_entries(folders: Sequence[Path]) -> list[PairedEntry]:
    """Returns the rows of several results folders, without duplicates.

    Raises:
        UserError: a folder has no results, or a task was measured on two corpora.
    """
    found: list[tuple[Path, Row, np.ndarray | None]] = []
    for folder in folders:
        rows = read_results(folder)
        if not rows:
            raise UserError(
                f"no {RESULTS} in {folder}, so there is nothing to show; evaluate encoders first: "
                f"python -m distributed evaluate --encoders ... --data DIR --out {folder}"
            )
        resamples = read_resamples(folder)
        found += [(folder, r, resamples.get(r.get("bootstrap", {}).get("values", ""))) for r in rows]
    checkpoints: dict[str, set[str]] = {}
    for _, row, _ in found:
        checkpoints.setdefault(row["encoder"], set()).add(row["digests"]["checkpoint"])
    entries: dict[tuple[str, str, str, str], PairedEntry] = {}
    for folder, row, values_MR in found:
        name = row["encoder"]
        label = name if len(checkpoints[name]) == 1 else f"{name} ({folder})"
        entries.setdefault(
            (label, row["task"], row["protocol"], row["digests"]["corpus"]), PairedEntry(label, row, values_MR)
        )
    return _of_one_corpus(list(entries.values()))


def paired_difference(entry: PairedEntry, reference: PairedEntry, metric: str) -> tuple[float, float, float] | str:
    """Returns entry - reference and its 95 % interval, or the reason why there is none."""
    one, other = entry.row, reference.row
    for what, same in (
        ("other protocol", one["protocol"] == other["protocol"]),
        ("other data", one["digests"]["corpus"] == other["digests"]["corpus"]),
    ):
        if not same:
            return what
    if entry.values_MR is None or reference.values_MR is None:
        return "no resamples kept"
    draws = [{k: v for k, v in r["bootstrap"].items() if k != "values"} for r in (one, other)]
    if draws[0] != draws[1]:
        return "other resamples"
    place = one["bootstrap"]["metrics"].index(metric)
    low, high = central_interval(entry.values_MR[place] - reference.values_MR[place])
    return entry.scored(metric)["value"] - reference.scored(metric)["value"], low, high


def _of_one_corpus(entries: list[PairedEntry]) -> list[PairedEntry]:
    """Returns the entries; raises UserError for two test sets of one task.

    Their scores must not share a column.
    """
    corpora: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        place = (entry.row["task"], entry.row["protocol"])
        corpora.setdefault(place, {}).setdefault(entry.row["digests"]["corpus"], entry.label)
    for (task, _), labels in corpora.items():
        if len(labels) > 1:
            names = " and ".join(list(labels.values())[:2])
            raise UserError(
                f"{task} was measured on different data for {names}, so their scores are not comparable; "
                "evaluate both on one --data DIR, or make a leaderboard of each"
            )
    return entries
