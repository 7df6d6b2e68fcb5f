"""Quick checks of frozen encoders without training: neighbours, a few labels, and spectra.

    python -m distributed evaluate --quick --encoders runs/demo random_init --data corpora/scores --out runs/demo

Layer and number of neighbours are chosen on validation; the test split is read once, for the choice. kNN applies to
tasks with classes or tags, few-shot to tasks with classes, spectra to all tasks on clips; frame tasks (beats, chords)
have no quick checks. Writes OUT/quick.jsonl and OUT/quick.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts, to_markdown
from distributed.drawing.wording import fixed, interval
from distributed.marble.datasets.targets import TaskData
from distributed.marble.jobs import ProbeJob, deal_jobs
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.quick.light_probes import FEW_SHOT, KNN, SPECTRUM, Check, check_job
from distributed.marble.quick.neighbours import DRAWS, SHOTS
from distributed.marble.results.results import Row, merged_rows, only_evaluation
from distributed.processes.collectives import all_or_none, gather
from distributed.processes.topology import Topology
from distributed.run.directory import write_atomically
from pupujepa.errors import UserError
from pupujepa.json_lines import write_rows
from pupujepa.progress import Progress

QUICK, TABLE = "quick.jsonl", "quick.md"


def whole_clips(prepared: Sequence[TaskData]) -> list[TaskData]:
    """Returns the tasks on clips; raises UserError without any."""
    kept = [data for data in prepared if not data.task.by_frame]
    if not kept:
        raise UserError(
            "--quick compares whole clips, but all of these tasks label frames; "
            "name others with --tasks, or omit --quick"
        )
    return kept


def check_all(jobs: Sequence[ProbeJob], check: Check, topology: Topology) -> list[Row]:
    """Checks this rank's jobs and returns the rows of all ranks, in the order of the jobs."""
    own: dict[int, list[Row]] = {}
    mine = deal_jobs(jobs, topology.world_size)[topology.rank]
    with (
        Progress(len(mine), title="checks", unit="tasks", shown=topology.is_first) as progress,
        all_or_none(topology, "checks"),
    ):
        for number in mine:
            own[number] = check_job(jobs[number], check)
            progress.advance()
    rows = {number: made for part in gather(own, topology) for number, made in part.items()}
    return [row for number in sorted(rows) for row in rows[number]]


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
    for place in dict.fromkeys((r["task"], r["encoder"], r["protocol"]) for r in rows):
        own = {_place(r)[3:]: r for r in rows if (r["task"], r["encoder"], r["protocol"]) == place}
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


def _place(row: Row) -> tuple[Any, ...]:
    return row["task"], row["encoder"], row["protocol"], row["check"], row.get("shots")


def _cell(row: Row | None) -> Cell:
    return ABSENT if row is None else Cell(fixed(row["value"]), interval(*row["interval"]))
