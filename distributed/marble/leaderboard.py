"""Compare the results of evaluations with each other and with published numbers.

  python -m distributed leaderboard runs/base                        from runs/base/results.jsonl
  python -m distributed leaderboard runs/* --out boards              of several folders, into boards/
  python -m distributed leaderboard runs/* --reference random_init   differences to another encoder
  python -m distributed leaderboard runs/* --compare base large      only these two, task by task

It reads what `python -m distributed evaluate` wrote and measures nothing. Tasks with one output a slice (global) and
tasks with one a frame (local) have separate tables, and so do MARBLE's and the offline tasks. Every row names its
protocol, how its layer and learning rate were chosen, and its source. Published numbers are a separate group; protocol
marble is nearest to them. A mark and a note show scores that are not comparable for another reason.

Differences are paired: both encoders are scored on the same resampled items, even from separate evaluations.

Writes leaderboard.md, leaderboard.html and leaderboard.tex, and prints the Markdown. With --compare it only prints.
"""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from distributed.drawing.tables import Cell, Group, Table, texts, to_latex, to_markdown, to_page
from distributed.drawing.wording import fixed
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.results.board import PAIRED_NOTE, PairedEntry, difference_cell, leaderboard, read_entries
from distributed.marble.results.results import RESULTS
from distributed.marble.tasks.marble_tasks import task_title
from distributed.run.directory import write_atomically
from pupujepa.errors import UserError

DEFAULT_REFERENCE = "random_init"
LEAD = (
    "Scores of probes on frozen features. Published numbers and numbers measured here are in separate groups, "
    "because layers, learning rates and data differ or may differ."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    results = f"folders with {RESULTS}: the --out of evaluate"
    parser.add_argument("results", nargs="+", type=Path, metavar="DIR", help=results)
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: the first DIR)")
    reference = f"encoder to compare the others with (default: {DEFAULT_REFERENCE}, if it was measured)"
    parser.add_argument("--reference", metavar="ENCODER", help=reference)
    compare = "print A - B for every task and metric that both have, and exit"
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help=compare)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    folders = [path.parent if path.name == RESULTS else path for path in args.results]
    entries = read_entries(folders)
    if args.compare:
        print(to_markdown([comparison_of(entries, *args.compare)]))  # noqa: T201 - the table is the product
        return 0
    measured = any(e.label == DEFAULT_REFERENCE for e in entries)
    reference = _known(entries, args.reference) if args.reference else DEFAULT_REFERENCE if measured else None
    print(write_leaderboard(args.out or folders[0], entries, reference=reference))  # noqa: T201 - the table is the product
    return 0


def write_leaderboard(out: Path, entries: Sequence[PairedEntry], *, reference: str | None) -> str:
    """Writes the three files and returns the Markdown."""
    tables = leaderboard(entries, reference=reference)
    markdown = f"# Leaderboard\n\n{LEAD}\n\n{to_markdown(tables)}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "leaderboard.md", markdown)
    write_atomically(out / "leaderboard.html", to_page(tables, title="Leaderboard", lead=[LEAD]))
    write_atomically(out / "leaderboard.tex", to_latex(tables))
    return markdown


def comparison_of(entries: Sequence[PairedEntry], one: str, other: str) -> Table:
    """Returns the paired differences one - other of every task, protocol and metric that both have.

    Raises:
        UserError: an encoder was not measured, or the two share no task.
    """
    one, other = _known(entries, one), _known(entries, other)
    of_other = {(e.row["task"], e.row["protocol"]): e for e in entries if e.label == other}
    rows: list[tuple[Cell, ...]] = []
    for entry in (e for e in entries if e.label == one):
        row = entry.row
        if reference := of_other.get((row["task"], row["protocol"])):
            for name in (row["metric"], *(n for n in METRICS if n in row["extra"])):
                values = [fixed(100 * e.scored(name)["value"], 1) for e in (entry, reference)]
                about = texts(task_title(row["task"]), row["protocol"], METRICS[name].title, *values)
                rows.append((*about, difference_cell(entry, reference, name)))
    if not rows:
        raise UserError(
            f"{one} and {other} share no task under one protocol, so there is nothing to compare; evaluate both: "
            "python -m distributed evaluate --encoders ... --tasks ..."
        )
    head = texts("task", "protocol", "metric", one, other, "difference in points")
    return Table(f"{one} minus {other}", head, (Group("", tuple(rows)),), (PAIRED_NOTE,))


def _known(entries: Sequence[PairedEntry], name: str) -> str:
    """Returns the label of a named encoder; raises UserError for an unknown or ambiguous name."""
    labels = list(dict.fromkeys(e.label for e in entries))
    if name in labels:
        return name
    # `read_entries` adds the folder to names that several encoders share
    qualified = [label for label in labels if label.startswith(f"{name} (")]
    if qualified:
        raise UserError(
            f"{name!r} is {len(qualified)} encoders with different weights; say which: "
            + ", ".join(repr(label) for label in qualified)
        )
    near = get_close_matches(name, labels, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no encoder {name!r} was measured, so nothing can be compared with it; {hint}There are: {', '.join(labels)}"
    )
