"""The head of the page: the verdict, the facts of the run, its interruptions and its time by phase."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.drawing.charts import last_finite
from distributed.drawing.forest import Difference, forest_plot, share_bar
from distributed.drawing.wording import (
    audio_length,
    compact,
    count_of,
    duration,
    grouped,
    listed,
    percent,
    significant,
)
from distributed.marble.results.tables import BASELINES
from distributed.report.collapse import Verdict, judge
from distributed.report.inputs import RunInputs, column
from distributed.report.probes import REFERENCE, difference_to
from distributed.report.terms import terms_of


@dataclass(frozen=True)
class Fact:
    """A labelled quantity; `note` is a short explanation."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Phase:
    """A phase of the run with its share of the bar."""

    name: str
    duration: str
    share: str
    tone: str


@dataclass(frozen=True)
class Overview:
    """The page above its first section."""

    headline: str
    lead: str
    state: str
    facts: tuple[Fact, ...]
    absent: str
    interruptions: str
    phases: tuple[Phase, ...]
    phase_bar: str
    phase_total: str
    gains: str


def overview(run: RunInputs) -> Overview:
    """Returns the head of the page; it names facts that the run did not record."""
    verdict = judge(run.metrics, terms_of(run))
    gains = trained_gains(run)
    facts, absent = _facts(run)
    total = sum(value for _, value in run.phases)
    return Overview(
        headline=headline(verdict, gains),
        lead=lead(run, gains),
        state=verdict.state if run.metrics else "open",
        facts=facts,
        absent=absent,
        interruptions=interruptions(run.facts.get("resumed")),
        phases=tuple(
            Phase(name, duration(value), percent(value / total, 0), f"tone-{i % 8 + 1}")
            for i, (name, value) in enumerate(run.phases)
        ),
        phase_bar=share_bar(run.phases) if run.phases else "",
        phase_total=duration(total),
        gains=forest_plot(gains, title="Trained minus untrained, per task, with 95 % intervals") if gains else "",
    )


def trained_gains(run: RunInputs) -> list[Difference]:
    """Returns trained minus random init per task, for the first trained encoder and its first protocol."""
    rows = [r for r in run.results if r["encoder"] not in BASELINES]
    if rows:
        rows = [r for r in rows if (r["encoder"], r.get("protocol")) == (rows[0]["encoder"], rows[0].get("protocol"))]
    return [d for r in rows if (d := difference_to(r, REFERENCE))]


def headline(verdict: Verdict, gains: Sequence[Difference]) -> str:
    """Returns the verdict in one line; an alarm has priority over any gain."""
    if verdict.state == "alarm":
        return "Watch out: the diagnostics of this run show signs of collapse"
    gained = sum(d.exceeds for d in gains)
    if gains and gained:
        return f"Training helped: {gained} of {len(gains)} probes beat the untrained network"
    if gains:
        return "No probe beats the untrained network yet"
    if verdict.state == "learning":
        return "The run is learning; its features are not probed yet"
    return "A run without a verdict yet"


def lead(run: RunInputs, gains: Sequence[Difference]) -> str:
    """Returns a summary of the training and the gains of the probes, with intervals."""
    hours, steps = run.fact("audio_hours"), run.fact("train", "steps")
    parts = ["PupuJEPA learns from music without labels"]
    if hours is not None:
        parts.append(f"here from {audio_length(hours)} of audio")
    if steps is not None:
        parts.append(f"in {grouped(int(steps))} steps")
    first = ", ".join(parts) + "."
    gained = sorted((d for d in gains if d.exceeds), key=lambda d: -d.value)
    if not gained:
        return first
    named = [f"{d.label.lower()} {d.words}" for d in gained]
    rest = [d.label.lower() for d in gains if not d.exceeds]
    level = f" {listed(rest).capitalize()} did not." if rest else ""
    return f"{first} Probes on its frozen features gained over the same network untrained: {listed(named)}.{level}"


def interruptions(resumed: Sequence[dict] | None) -> str:
    """Returns a sentence on the interruptions of the run and their checkpoints."""
    if resumed is None:
        return ""
    if not resumed:
        return "The run had no interruption."
    steps = [grouped(int(r["step"])) for r in resumed]
    times = "once" if len(steps) == 1 else count_of(len(steps), "time")
    return (
        f"The run was interrupted {times} and continued from the checkpoint of step "
        f"{listed(steps)}; the dashed lines in the curves mark it."
    )


def _facts(run: RunInputs) -> tuple[tuple[Fact, ...], str]:
    """Returns the facts with a value, and a sentence that names those without."""
    _, losses = column(run.metrics, "loss")
    _, crops = column(run.metrics, "crops_per_s")
    first, last = run.fact("loss_first"), run.fact("loss_last")
    speed = run.fact("crops_per_s", default=last_finite(crops) if crops else None)
    candidates: list[tuple[str, Any, Callable[[Any], str], str]] = [
        ("Audio", run.fact("audio_hours"), audio_length, "of the training split"),
        ("Tracks", run.fact("tracks"), grouped, "in the training split"),
        ("Shards", run.fact("shards"), grouped, "read as a stream"),
        ("Parameters", run.fact("parameters"), compact, "encoder and predictor"),
        ("Ranks", run.fact("ranks"), grouped, str(run.fact("device", default=""))),
        ("ZeRO stage", run.fact("engine", "zero_stage"), str, "DeepSpeed"),
        ("Precision", run.fact("engine", "precision"), str, "of the computation"),
        ("Steps", run.fact("train", "steps"), grouped, "optimiser updates"),
        ("Global batch", run.fact("stream", "global_batch"), grouped, "crops per step"),
        ("Speed", speed, significant, "crops per second"),
        ("Waiting for data", run.fact("data_wait_fraction"), percent, "of the training time"),
        ("Loss", first if first is not None else (losses[0] if losses else None), significant, ""),
        ("Explained variance", run.fact("explained_variance"), percent, "beyond a constant"),
        ("Effective rank", run.fact("effective_rank"), significant, "of the teacher's features"),
    ]
    facts, absent = [], []
    for label, value, write, note in candidates:
        if value is None:
            absent.append(label.lower())
            continue
        text = write(value)
        if label == "Loss":
            end = last if last is not None else losses[-1]
            text, note = f"{text} → {significant(end)}", "first and last logged"
        facts.append(Fact(label, text, note))
    return tuple(facts), f"Not recorded by this run: {listed(absent)}." if absent else ""
