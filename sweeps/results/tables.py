"""Tables of a sweep, with sentences on the evidence that the numbers give."""

from collections.abc import Sequence
from typing import Any

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts, to_markdown
from distributed.drawing.wording import count_of, duration, fixed, grouped, interval, listed, significant
from distributed.marble.tasks.marble_tasks import task_title
from sweeps.plan.plan import Plan
from sweeps.results.outcomes import Delta, Point

TERA = 1e12


def points_table(plan: Plan, rows: Sequence[dict[str, Any]], found: Sequence[Point]) -> Table:
    """Returns the table of the base and every axis value: scores, settings that differ, and cost."""
    tasks = tasks_of(rows)
    head = texts("trial", *(title(t, rows) for t in tasks), "differs from the base in", "crops", "TFLOP", "time")
    lines = [
        (Cell(p.label), *(cell(p, t) for t in tasks), Cell(setting_differences(p) or ABSENT.text), *texts(*cost(p)))
        for p in found
    ]
    return Table("Every value of every axis", head, (Group("", tuple(lines)),), tuple(sweep_notes(plan, found)))


def trials_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the table of the trials: status, length, times and directory."""
    lines = [
        texts(
            row["name"],
            str(row["seed"]),
            row["status"],
            str(row["steps"]),
            duration(row["train_s"]),
            duration(row["evaluate_s"]),
            row["directory"],
        )
        for row in rows
    ]
    head = texts("trial", "seed", "status", "steps", "training", "probes", "directory")
    return Table("The trials", head, (Group("", tuple(lines)),))


def markdown_page(plan: Plan, table: Table, failed: Sequence[dict[str, Any]]) -> str:
    """Returns the table with its notes, and the failed trials with the tails of their logs."""
    lines = [f"# {plan.name}", "", *([plan.question, ""] if plan.question else []), to_markdown([table])]
    for row in failed:
        lines += [f"**{row['name']} {row['status']}**: {row['reason'] or 'not finished'}", ""]
        lines += ["```", *row["log_tail"], "```", ""] if row["log_tail"] else []
    return "\n".join(lines)


def tasks_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the tasks with results of any trial, in the order of the evaluator."""
    return list(dict.fromkeys(task for row in rows for task in row["results"]))


def title(task: str, rows: Sequence[dict[str, Any]]) -> str:
    """Returns a task's title and metric, as a column head."""
    metric = next(row["results"][task]["metric"] for row in rows if task in row["results"])
    return f"{task_title(task)} ({metric})"


def cell(point: Point, task: str) -> Cell:
    """Returns the value of a task and its difference to the base, or a dash."""
    if task not in point.values:
        return ABSENT
    if task not in point.deltas:
        return Cell(fixed(point.values[task]))
    delta = point.deltas[task]
    return Cell(fixed(point.values[task]), f"({fixed(delta.value, sign=True)} {interval(delta.lo, delta.hi)})")


def setting_differences(point: Point) -> str:
    """Returns the settings that differ from the base, `key: base → here`."""
    differ = [f"{key}: {before} → {here}" for key, (before, here) in point.differs.items()]
    also = sorted({name.rpartition("-seed")[0] for row in point.rows for name in row["also"]})
    return "; ".join([*differ, *([f"also stands for {listed(also)}"] if also else [])])


def cost(point: Point) -> tuple[str, str, str]:
    """Returns the mean cost of a trial: crops, TFLOP of training, and time with its probes.

    A trial that only evaluates a model has no crops and operations.
    """
    seconds = sum(row["train_s"] + row["evaluate_s"] for row in point.rows) / len(point.rows)
    if point.rows[0]["model"]:
        return ABSENT.text, ABSENT.text, duration(seconds)
    return grouped(point.rows[0]["crops"]), significant(point.flops / TERA), duration(seconds)


def sweep_notes(plan: Plan, found: Sequence[Point]) -> list[str]:
    """Returns sentences on the intervals, the split, and the differences that are clear of zero."""
    seeds = sorted({planned.trial.seed for planned in plan.trials})
    sentences = [_about_intervals(seeds), _about_split(plan.launch.compare_on)]
    clear = [(p, {task: d for task, d in p.deltas.items() if d.is_clear}) for p in found]
    for point, deltas in clear:
        changes = [f"{'raises' if d.value > 0 else 'lowers'} {task} by {_size(d)}" for task, d in deltas.items()]
        if changes:
            sentences.append(f"{point.label} {listed(changes)}.")
    if any(p.deltas for p in found) and not any(deltas for _, deltas in clear):
        sentences.append("No difference is clear of zero: at this size and length no value is better or worse.")
    return sentences


def failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of trials without results."""
    return [row for row in rows if row["status"] not in ("finished", "pruned")]


def _size(delta: Delta) -> str:
    return (
        f"{fixed(abs(delta.value))} (95 % interval of the difference {interval(delta.lo, delta.hi)}, over {delta.over})"
    )


def _about_split(split: str) -> str:
    if split == "valid":
        return (
            "Scores are those of the validation split, which also chose each probe's layer and learning rate. Use them "
            "to choose between trials; as results they are too high."
        )
    return "Scores are those of the test split; validation chose the layer and learning rate of each probe."


def _about_intervals(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return (
            f"Differences are paired by seed over {count_of(len(seeds), 'seed')}; intervals are Student's t, 95 %, and "
            f"have the spread between runs."
        )
    return (
        f"There is one seed ({seeds[0]}), so there is no interval over seeds: another seed may change every number. "
        f"Intervals cover the choice of items only (95 %, both runs' bootstrap intervals combined as if "
        f"independent, which is conservative)."
    )
