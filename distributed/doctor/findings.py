"""Findings of the doctor: level, fact and remedy; as text, as JSON and as an exit code."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARNING, FAILED, ABSENT = "ok", "warning", "failed", "not here"
LEVELS = (OK, WARNING, FAILED, ABSENT)
# tasks of a machine, from little to much
AIMS = ("embed", "train", "demo")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: of the check, such as "memory".
        level: "ok"; "warning" if something may fail or be slow; "failed" if something needed is missing; "not here" if
            something missing is not needed.
        found: the fact, in words.
        remedy: "" if there is nothing to do.
    """

    name: str
    level: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.level in LEVELS, self.level


def failure(name: str, error: Exception, *, remedy: str = "") -> Finding:
    """Splits an error that ends with its remedy into a finding; `remedy` is for one without."""
    found, _, own = str(error).rpartition("; ")
    return Finding(name, FAILED, found or own, own if found else remedy)


def doctor_exit_code(findings: Iterable[Finding]) -> int:
    """Returns 1 if something needed is missing, else 0."""
    return int(any(finding.level == FAILED for finding in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """Returns an aligned line per finding with its remedy below, and a last line with the counts."""
    width, name_width = 10, 2 + max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.level:<{width}}{finding.name:<{name_width}}{finding.found}")
        if finding.remedy:
            lines.append(f"{'':<{width + name_width}}-> {finding.remedy}")
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    return "\n".join([*lines, f"{len(findings)} checks: {counts}"])


def as_json(findings: Sequence[Finding], context: Mapping[str, Any]) -> str:
    """Returns one JSON object: the context, the exit code, and the findings in their order."""
    rows = [asdict(finding) for finding in findings]
    return json.dumps({**context, "exit_code": doctor_exit_code(findings), "findings": rows}, indent=1)
