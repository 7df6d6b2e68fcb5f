"""Findings of the doctor: a level, what was found, and the remedy; as text, as JSON and as an exit code."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARNING, FAILED, ABSENT = "ok", "warning", "failed", "not here"
LEVELS = (OK, WARNING, FAILED, ABSENT)
# what the machine is asked for, from little to much
AIMS = ("embed", "train", "demo")

_LEVEL_WIDTH = 10


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: of the check, such as "memory".
        level: "ok"; "warning" for what may fail or is slow; "failed" when something needed is missing; "not here" when
            something is missing that nobody needs.
        found: the fact, in words.
        remedy: what to do about it; "" if there is nothing to do.
    """

    name: str
    level: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.level in LEVELS, self.level


def exit_code(findings: Iterable[Finding]) -> int:
    """Returns 1 if something needed is missing, else 0."""
    return int(any(finding.level == FAILED for finding in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """Returns one aligned line per finding, its remedy indented below, and a last line that counts the levels."""
    name_width = 2 + max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.level:<{_LEVEL_WIDTH}}{finding.name:<{name_width}}{finding.found}")
        if finding.remedy:
            lines.append(f"{'':<{_LEVEL_WIDTH + name_width}}-> {finding.remedy}")
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    return "\n".join([*lines, f"{len(findings)} checks: {counts}"])


def as_json(findings: Sequence[Finding], context: Mapping[str, Any]) -> str:
    """Returns one JSON object: the context, the exit code, and the findings in their order."""
    rows = [asdict(finding) for finding in findings]
    return json.dumps({**context, "exit_code": exit_code(findings), "findings": rows}, indent=1)
