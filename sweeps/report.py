"""The table and the page of a sweep: the effect of each change on each task, and its cost.

  python -m sweeps report runs/sweep          writes sweep.jsonl, sweep.md, sweep.tex and sweep.html into runs/sweep

It can run at any time: the table also has the trials that failed or are not finished. The page is one file that needs
no network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.drawing.charts import frame_clip
from distributed.drawing.tables import Table, render_page, to_latex
from distributed.run.directory import write_atomically
from pupujepa.json_lines import write_rows
from sweeps.plan.plan import Plan, read_plan
from sweeps.results.outcomes import Point, points, trial_rows
from sweeps.results.plots import delta_table, parallel_coordinates, pareto_chart, quality_chart
from sweeps.results.tables import failures, markdown_page, points_table, tasks_of, title, trials_table

HERE = Path(__file__).parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("out", type=Path, metavar="SWEEP_DIR", help="the --out of `sweeps run`, e.g. runs/sweep")


def run(args: argparse.Namespace) -> int:
    """Writes the four files and prints the table."""
    markdown = write_report(args.out)
    print(markdown)  # noqa: T201 - the table is the product
    return 0


def write_report(out: Path) -> str:
    """Writes sweep.jsonl, .md, .tex and .html into a sweep directory and returns the Markdown.

    Raises:
        UserError: there is no sweep.
    """
    plan = read_plan(out)
    rows = trial_rows(plan, out)
    found = points(rows)
    table = points_table(plan, rows, found)
    markdown = markdown_page(plan, table, failures(rows))
    write_rows(out / "sweep.jsonl", rows)
    write_atomically(out / "sweep.md", markdown)
    write_atomically(out / "sweep.tex", to_latex([table]))
    write_atomically(out / "sweep.html", sweep_page(plan, table, rows=rows, found=found))
    return markdown


def sweep_page(plan: Plan, table: Table, *, rows: Sequence[dict[str, Any]], found: Sequence[Point]) -> str:
    """Returns the HTML page: charts, the table of the axis values, and the table of the trials."""
    return render_page(
        HERE / "page.html.j2",
        title=f"{plan.name} · PupuJEPA sweep",
        plan=plan,
        values=table,
        trials=trials_table(rows),
        plots=[plot for task in tasks_of(rows) if (plot := delta_table(task, title(task, rows), found))],
        wide=parallel_coordinates(found),
        charts=[chart for chart in (quality_chart(found), pareto_chart(found)) if chart],
        clip=frame_clip(),
        failures=failures(rows),
    )
