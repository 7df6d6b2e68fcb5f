"""The table and the page of a sweep: what each change did to each task, with intervals, and what it cost.

  python -m sweeps report runs/sweep          writes sweep.jsonl, sweep.md and sweep.html into runs/sweep

It can be run at any time; trials that are not finished, diverged or crashed are in the table as such. The page is one
file that needs no network.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distributed import report as page_of_a_run
from distributed.marble.tasks import TASKS
from distributed.report.forest import Difference, forest_plot
from distributed.report.wording import count_of, duration, fixed, grouped, interval, listed
from distributed.run_directory import write_atomically
from sweeps.outcomes import Delta, Point, points, trial_rows
from sweeps.plan import Plan, read_plan

ABSENT = "\N{EN DASH}"
HERE = Path(__file__).parent
STYLE = Path(page_of_a_run.__file__).parent / "page.css"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("out", type=Path, metavar="SWEEP_DIR", help="the --out of `sweeps run`, e.g. runs/sweep")


def run(args: argparse.Namespace) -> int:
    """Writes the three files and prints the table."""
    markdown = write_report(args.out)
    print(markdown)  # noqa: T201 - the table is the product
    return 0


def write_report(out: Path) -> str:
    """Writes sweep.jsonl, sweep.md and sweep.html into a sweep directory and returns the Markdown.

    Raises:
        UserError: there is no sweep.
    """
    plan = read_plan(out)
    rows = trial_rows(plan, out)
    found = points(rows)
    markdown = to_markdown(plan, rows, found)
    write_atomically(out / "sweep.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(out / "sweep.md", markdown)
    write_atomically(out / "sweep.html", to_html(plan, rows, found))
    return markdown


@dataclass(frozen=True)
class Change(Difference):
    """A row of a forest plot; unlike a gain, a change counts in both directions."""

    @property
    def exceeds(self) -> bool:
        """True when the interval leaves out zero."""
        return self.lo > 0 or self.hi < 0


def to_markdown(plan: Plan, rows: Sequence[dict[str, Any]], found: Sequence[Point]) -> str:
    """Returns the table, what it can and cannot say, and what went wrong."""
    tasks = tasks_of(rows)
    lines = [f"# {plan.name}", "", *([plan.question, ""] if plan.question else [])]
    lines += [f"| | {' | '.join(title(task, rows) for task in tasks)} | differs from the base in | crops | time |"]
    lines += ["|---|" + "---|" * (len(tasks) + 3)]
    for point in found:
        cells = [cell(point, task) for task in tasks]
        lines.append(f"| {point.label} | {' | '.join(cells)} | {differences(point)} | {cost(point)} |")
    lines += ["", *reading(plan, found), ""]
    for row in failures(rows):
        lines += [f"**{row['name']} {row['status']}**: {row['reason'] or 'not finished'}", "", "```"]
        lines += [*row["log_tail"], "```", ""]
    return "\n".join(lines)


def to_html(plan: Plan, rows: Sequence[dict[str, Any]], found: Sequence[Point]) -> str:
    """Returns the page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tasks = tasks_of(rows)
    return environment.get_template("page.html.j2").render(
        plan=plan,
        rows=rows,
        points=found,
        tasks=[(task, title(task, rows)) for task in tasks],
        plots=[(title(task, rows), plot) for task in tasks if (plot := delta_plot(task, found))],
        reading=reading(plan, found),
        failures=failures(rows),
        cell=cell,
        differences=differences,
        cost=cost,
        interval=interval,
        fixed=fixed,
        duration=duration,
        style=STYLE.read_text(),
    )


def tasks_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the tasks that any trial has results for, in the order of the evaluator."""
    return list(dict.fromkeys(task for row in rows for task in row["results"]))


def title(task: str, rows: Sequence[dict[str, Any]]) -> str:
    """Returns a task's title and metric, as a column head."""
    titles = {row.name: row.title for row in TASKS}
    metric = next(row["results"][task]["metric"] for row in rows if task in row["results"])
    return f"{titles.get(task, task)} ({metric})"


def cell(point: Point, task: str) -> str:
    """Returns the value of a task and its difference to the base, or a dash."""
    if task not in point.values:
        return ABSENT
    if task not in point.deltas:
        return fixed(point.values[task])
    delta = point.deltas[task]
    return f"{fixed(point.values[task])} ({fixed(delta.value, sign=True)} {interval(delta.lo, delta.hi)})"


def differences(point: Point) -> str:
    """Returns the hyperparameters that differ, `key: base -> here`."""
    texts = [f"{key}: {before} → {here}" for key, (before, here) in point.differs.items()]
    also = sorted({name.rpartition("-seed")[0] for row in point.rows for name in row["also"]})
    same = [f"also stands for {listed(also)}"] if also else []
    return "; ".join([*texts, *same]) or ABSENT


def cost(point: Point) -> str:
    """Returns crops seen and time taken, both per trial, as two cells."""
    seconds = [row["train_s"] + row["evaluate_s"] for row in point.rows]
    return f"{grouped(point.rows[0]['crops'])} | {duration(sum(seconds) / len(seconds))}"


def reading(plan: Plan, found: Sequence[Point]) -> list[str]:
    """Returns sentences on what the numbers can and cannot say."""
    seeds = sorted({planned.trial.seed for planned in plan.trials})
    sentences = [_about_intervals(seeds), _about_split(plan.launch.compare_on)]
    clear = [(p, task, d) for p in found for task, d in p.deltas.items() if d.is_clear]
    for point, task, delta in clear:
        direction = "raises" if delta.value > 0 else "lowers"
        sentences.append(f"{point.label} {direction} {task} by {_size(delta)}.")
    compared = [p for p in found if p.deltas]
    if compared and not clear:
        sentences.append("No difference is clear of zero: at this size and length nothing here tells the values apart.")
    return sentences


def failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of trials without results."""
    return [row for row in rows if row["status"] != "finished"]


def delta_plot(task: str, found: Sequence[Point]) -> str:
    """Returns a forest plot of all differences to the base on one task; empty when there are none."""
    changes = [
        Change(point.label, delta.value, delta.lo, delta.hi)
        for point in found
        if (delta := point.deltas.get(task)) is not None
    ]
    return forest_plot(changes, title=f"{task}: difference to the base") if changes else ""


def _size(delta: Delta) -> str:
    return (
        f"{fixed(abs(delta.value))} (95 % interval of the difference {interval(delta.lo, delta.hi)}, over {delta.over})"
    )


def _about_split(split: str) -> str:
    if split == "valid":
        return (
            "Scores are those of the validation split, which also chose each probe's layer and learning rate: they "
            "serve to choose between trials, and are too high as results."
        )
    return "Scores are those of the test split; layer and learning rate of each probe were chosen on validation."


def _about_intervals(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return (
            f"Differences are paired by seed over {count_of(len(seeds), 'seed')}; intervals are Student's t, 95 %, and "
            f"hold the spread between runs."
        )
    return (
        f"There is one seed ({seeds[0]}), so there is no interval over seeds: another seed may move every number. "
        f"Intervals cover the choice of items only (95 %, both runs' bootstrap intervals combined as if "
        f"independent, which is on the safe side)."
    )
