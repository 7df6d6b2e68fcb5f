"""lineage.jsonl: who copied whom in a population, when, and with which values it went on; the state of the population.

A row for each member and comparison: `sweep` (digest of the plan), `generation` and `samples` of the comparison,
`member` (its number), `trial`, `quality` (null for one that diverged), `values`, `copied_from` and its `source_quality`
(null for one that goes on as it is), `becomes` (the run that has the place from then on) and `goes_on_with`. A
comparison is written in one piece before anything follows from it, so a sweep that was killed goes on with the same
decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.drawing.wording import fixed, grouped, listed
from distributed.run_directory import read_rows, write_rows

LINEAGE_NAME = "lineage.jsonl"

Row = dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """A part of a training with one set of values, in crops."""

    trial: str
    values: Mapping[str, str]
    first: int
    end: int


def read_lineage(out: Path, sweep: str) -> list[Row]:
    """Returns the rows of the sweep with this digest, in their order."""
    return [row for row in read_rows(out / LINEAGE_NAME) if row["sweep"] == sweep]


def add_to_lineage(out: Path, rows: Sequence[Row]) -> None:
    """Adds the rows of a comparison, all or none."""
    write_rows(out / LINEAGE_NAME, [*read_rows(out / LINEAGE_NAME), *rows])


def schedule_of(trial: str, rows: Sequence[Row], *, end: int) -> list[Stretch]:
    """Returns with which values the weights of a run were trained: its own and, before, those of whom it copied."""
    born = {row["becomes"]: row for row in rows if row["copied_from"]}
    began_with = {row["trial"]: row["values"] for row in reversed(rows)}
    found: list[Stretch] = []
    while trial in born:
        row = born[trial]
        found.append(Stretch(trial, row["goes_on_with"], row["samples"], end))
        trial, end = row["copied_from"], row["samples"]
    return [Stretch(trial, began_with[trial], 0, end), *reversed(found)]


def sentences(rows: Sequence[Row], qualities: Mapping[str, float], *, total: int) -> list[str]:
    """Returns what happened to each member, and the schedule that the best one ended with.

    Args:
        qualities: of the probes at the end of training, by trial.
        total: crops of a whole training.
    """
    members = {row["member"]: row["becomes"] for row in rows}
    said = [_of_member(number, rows) for number in members]
    ended = {trial: qualities[trial] for trial in members.values() if trial in qualities}
    if ended:
        best = max(ended, key=lambda trial: ended[trial])
        parts = [f"{_words(s.values)} to {grouped(s.end)} ({s.trial})" for s in schedule_of(best, rows, end=total)]
        said.append(
            f"Best of {len(ended)} by its probes at the end ({fixed(ended[best])}): {best}. The schedule that its "
            f"weights were trained with, in crops: {', then '.join(parts)}."
        )
    said.append(
        "This is one run of one population: there is no interval over runs, and as every comparison looks at the past "
        "stretch only, the schedule is greedy."
    )
    return said


def _of_member(number: int, rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["member"] == number]
    changes = [of_copy(row) for row in own if row["copied_from"]]
    return f"Member {number}: {'; '.join([_words(own[0]['values']), *changes])}."


def of_copy(row: Row) -> str:
    """Returns what a row says about a member that is replaced."""
    where = f"copied from {row['copied_from']} at {grouped(row['samples'])} crops"
    return f"{where} ({_quality(row)}), then {_words(row['goes_on_with'])}"


def _quality(row: Row) -> str:
    if row["quality"] is None:
        return f"{fixed(row['source_quality'])}, after its own had diverged"
    return f"{fixed(row['source_quality'])} against {fixed(row['quality'])}"


def _words(values: Mapping[str, str]) -> str:
    return listed([f"{name} {value}" for name, value in values.items()])
