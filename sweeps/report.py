"""The table and the page of a sweep: what each change did to each task, with intervals, and what it cost.

  python -m sweeps report runs/sweep          writes sweep.jsonl, sweep.md, sweep.tex and sweep.html into runs/sweep

It can be run at any time; trials that are not finished, diverged or crashed are in the table as such. The page is one
file that needs no network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.drawing.charts import frame_clip
from distributed.drawing.page import render_page
from distributed.drawing.wording import duration, fixed, interval
from distributed.run_directory import write_atomically, write_rows
from sweeps.outcomes import Point, points, trial_rows
from sweeps.plan import Plan, read_plan
from sweeps.plots import delta_plot, parallel_coordinates, pareto_chart, quality_chart
from sweeps.tables import COST_HEADS, cost, differences, failures, reading, tasks_of, title, to_latex, to_markdown

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
    """Writes sweep.jsonl, sweep.md, sweep.tex and sweep.html into a sweep directory and returns the Markdown.

    Raises:
        UserError: there is no sweep.
    """
    plan = read_plan(out)
    rows = trial_rows(plan, out)
    found = points(rows)
    markdown = to_markdown(plan, rows, found)
    write_rows(out / "sweep.jsonl", rows)
    write_atomically(out / "sweep.md", markdown)
    write_atomically(out / "sweep.tex", to_latex(plan, rows, found))
    write_atomically(out / "sweep.html", to_html(plan, rows, found))
    return markdown


def to_html(plan: Plan, rows: Sequence[dict[str, Any]], found: Sequence[Point]) -> str:
    """Returns the page."""
    tasks = tasks_of(rows)
    return render_page(
        HERE / "page.html.j2",
        title=f"{plan.name} · PupuJEPA sweep",
        plan=plan,
        rows=rows,
        points=found,
        tasks=[(task, title(task, rows)) for task in tasks],
        plots=[(title(task, rows), plot) for task in tasks if (plot := delta_plot(task, found))],
        wide=parallel_coordinates(found),
        charts=[chart for chart in (quality_chart(found), pareto_chart(found)) if chart],
        clip=frame_clip(),
        reading=reading(plan, found),
        failures=failures(rows),
        cost_heads=COST_HEADS,
        differences=differences,
        cost=cost,
        interval=interval,
        fixed=fixed,
        duration=duration,
    )
