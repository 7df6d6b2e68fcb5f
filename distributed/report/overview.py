"""The head of the page (verdict, facts, time by phase) and its last section, on reproduction."""

import re
from collections.abc import Callable, Sequence
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
from distributed.run.installed import installed_versions

PACKAGES = ("torch", "torchaudio", "deepspeed", "webdataset", "numpy", "scikit-learn", "librosa", "mir_eval")


def overview(run: RunInputs) -> dict[str, Any]:
    """Returns the head of the page; it names facts that the run did not record."""
    verdict, gains = judge(run.metrics, run.words), trained_gains(run)
    facts, absent = _facts(run)
    total_s, resumed, interruptions = sum(seconds for _, seconds in run.phases), run.facts.get("resumed"), ""
    if resumed is not None:
        steps = [grouped(int(r["step"])) for r in resumed]
        times = "once" if len(steps) == 1 else count_of(len(steps), "time")
        interruptions = (
            f"The run was interrupted {times} and continued from the checkpoint of step "
            f"{listed(steps)}; the dashed lines in the curves mark it."
            if steps
            else "The run had no interruption."
        )
    return {
        "headline": _headline(verdict, gains),
        "lead": _lead(run, gains),
        "state": verdict.state if run.metrics else "open",
        "facts": facts,
        "absent": absent,
        "interruptions": interruptions,
        "phases": [
            (name, duration(seconds), percent(seconds / total_s, 0), f"tone-{i % 8 + 1}")
            for i, (name, seconds) in enumerate(run.phases)
        ],
        "phase_bar": share_bar(run.phases) if run.phases else "",
        "phase_total": duration(total_s),
        "gains": forest_plot(gains, title="Trained minus untrained, per task, with 95 % intervals") if gains else "",
    }


def reproduce_section(run: RunInputs, shards: str | None) -> dict[str, Any]:
    """Returns the commands from shards to page (the run's own, if recorded), and all digests."""
    facts, home = run.facts, run.location
    ranks, url = run.fact("ranks", default=1), run.fact("stream", "url", default="SHARDS/train")
    launcher = "python -m" if ranks == 1 else f"torchrun --standalone --nproc-per-node={ranks} -m"
    sessions = facts.get("sessions") or [{}]  # a resumed run has several
    recorded = sessions[0].get("command") or f"train --config {home}/config.yaml --run-dir {home}"
    measured = {row["encoder"] for row in run.results}
    encoders = " ".join([home, *(b for b in BASELINES if b in measured or not measured)])
    labels = {
        "manifest_digest": "training shards",
        "frontend_digest": "front end",
        "checkpoint_digest": "checkpoint",
        "git_commit": "source",
    }
    return {
        "commands": [
            ("check every byte of the shards", f"python -m data verify {url}"),
            ("train, or continue after an interruption", f"{launcher} distributed {recorded}"),
            ("probe", f"{launcher} distributed evaluate --encoders {encoders} --data CORPUS --out {home}"),
            ("this page", f"python -m distributed report {home}" + (f" --shards {shards}" if shards else "")),
        ],
        "config_text": without_secrets(run.config_text or ""),
        "digests": [(label, str(facts[key])) for key, label in labels.items() if facts.get(key)],
        "versions": list((facts.get("versions") or installed_versions(PACKAGES)).items()),
        "versions_note": "recorded by the run" if facts.get("versions") else "of the machine that made this page",
    }


def without_secrets(text: str) -> str:
    """Returns the text without user:password in URLs and values of keys that look secret; a last resort."""
    text = re.sub(r"(\w+://)[^/\s:@]+:[^/\s@]+@", r"\1", text)
    return re.sub(r"(?im)^(\s*[\w.]*(?:secret|password|token|access_key)[\w.]*\s*:).+$", r"\1 (hidden)", text)


def trained_gains(run: RunInputs) -> list[Difference]:
    """Returns trained minus random init per task, for the first trained encoder and its first protocol."""
    rows = [(r, (r["encoder"], r.get("protocol"))) for r in run.results if r["encoder"] not in BASELINES]
    return [d for r, kind in rows if kind == rows[0][1] and (d := difference_to(r, REFERENCE))]


def _headline(verdict: Verdict, gains: Sequence[Difference]) -> str:
    """Returns the verdict in one line; an alarm has priority over any gain."""
    if verdict.state == "alarm":
        return "Watch out: the diagnostics of this run show signs of collapse"
    gained = sum(d.exceeds for d in gains)
    if gained:
        return f"Training helped: {gained} of {len(gains)} probes beat the untrained network"
    if gains:
        return "No probe beats the untrained network yet"
    if verdict.state == "learning":
        return "The run is learning; its features are not probed yet"
    return "A run without a verdict yet"


def _lead(run: RunInputs, gains: Sequence[Difference]) -> str:
    """Returns a summary of the training and the gains of the probes, with intervals."""
    hours, steps = run.fact("audio_hours"), run.fact("train", "steps")
    parts = ["PupuJEPA learns from music without labels"]
    parts += [f"here from {audio_length(hours)} of audio"] if hours is not None else []
    parts += [f"in {grouped(int(steps))} steps"] if steps is not None else []
    first = ", ".join(parts) + "."
    gained = sorted((d for d in gains if d.exceeds), key=lambda d: -d.value)
    if not gained:
        return first
    named = [f"{d.label.lower()} {d.words}" for d in gained]
    rest = [d.label.lower() for d in gains if not d.exceeds]
    level = f" {listed(rest).capitalize()} did not." if rest else ""
    return f"{first} Probes on its frozen features gained over the same network untrained: {listed(named)}.{level}"


def _facts(run: RunInputs) -> tuple[list[tuple[str, str, str]], str]:
    """Returns (label, value, note) of the facts with a value, and a sentence that names those without."""
    (_, losses), (_, crops) = column(run.metrics, "loss"), column(run.metrics, "crops_per_s")
    first = run.fact("loss_first", default=losses[0] if losses else None)
    last = run.fact("loss_last", default=losses[-1] if losses else None)
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
        ("Loss", first, lambda loss: f"{significant(loss)} → {significant(last)}", "first and last logged"),
        ("Explained variance", run.fact("explained_variance"), percent, "beyond a constant"),
        ("Effective rank", run.fact("effective_rank"), significant, "of the teacher's features"),
    ]
    facts = [(label, write(value), note) for label, value, write, note in candidates if value is not None]
    absent = [label.lower() for label, value, *_ in candidates if value is None]
    return facts, f"Not recorded by this run: {listed(absent)}." if absent else ""
