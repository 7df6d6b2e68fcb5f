"""The section on reproduction: commands, the resolved configuration, digests and versions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from distributed.marble.results.tables import BASELINES
from distributed.report.inputs import RunInputs
from distributed.run.installed import installed_versions

PACKAGES = ("torch", "torchaudio", "deepspeed", "webdataset", "numpy", "scikit-learn", "librosa", "mir_eval")


@dataclass(frozen=True)
class Reproduce:
    """The last section."""

    commands: tuple[tuple[str, str], ...]  # (purpose, command)
    config_text: str
    digests: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    versions_note: str


def reproduce_section(run: RunInputs, shards: str | None) -> Reproduce:
    """Returns the section; the training command is the run's own record, where it has one."""
    facts = run.facts
    digests = [
        (label, str(facts[key]))
        for key, label in (
            ("manifest_digest", "training shards"),
            ("frontend_digest", "front end"),
            ("checkpoint_digest", "checkpoint"),
            ("git_commit", "source"),
        )
        if facts.get(key)
    ]
    recorded = facts.get("versions")
    return Reproduce(
        tuple(commands(run, shards)),
        without_secrets(run.config_text or ""),
        tuple(digests),
        tuple((str(k), str(v)) for k, v in (recorded or installed_versions(PACKAGES)).items()),
        "recorded by the run" if recorded else "of the machine that made this page",
    )


def commands(run: RunInputs, shards: str | None) -> list[tuple[str, str]]:
    """Returns the commands from the shards to this page."""
    url = run.fact("stream", "url", default="SHARDS/train")
    ranks, home = run.fact("ranks", default=1), run.location
    launcher = "python -m" if ranks == 1 else f"torchrun --standalone --nproc-per-node={ranks} -m"
    sessions = run.facts.get("sessions") or [{}]
    recorded = sessions[0].get("command") or f"train --config {home}/config.yaml --run-dir {home}"
    encoders = " ".join(ordered(run.results, home))
    page = f"python -m distributed report {home}" + (f" --shards {shards}" if shards else "")
    return [
        ("check every byte of the shards", f"python -m data verify {url}"),
        ("train, or continue after an interruption", f"{launcher} distributed {recorded}"),
        ("probe", f"{launcher} distributed evaluate --encoders {encoders} --data CORPUS --out {home}"),
        ("this page", page),
    ]


def ordered(rows: Sequence[dict], home: str) -> list[str]:
    """Returns the encoders for the evaluator's command line: the run, then its baselines."""
    names = {r["encoder"] for r in rows}
    return [home, *(b for b in BASELINES if b in names or not rows)]


def without_secrets(text: str) -> str:
    """Returns the text without user:password in URLs and values of keys that look secret; a last resort."""
    text = re.sub(r"(\w+://)[^/\s:@]+:[^/\s@]+@", r"\1", text)
    return re.sub(r"(?im)^(\s*[\w.]*(?:secret|password|token|access_key)[\w.]*\s*:).+$", r"\1 (hidden)", text)
