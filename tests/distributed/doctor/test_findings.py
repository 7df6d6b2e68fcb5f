"""Findings as text, as JSON and as an exit code."""

import json

import pytest

from distributed.doctor.findings import ABSENT, FAILED, LEVELS, OK, WARNING, Finding, as_json, as_text, doctor_exit_code

FINDINGS = [
    Finding("cores", OK, "2"),
    Finding("temporary files", WARNING, "0.4 GiB free in /tmp", "set TMPDIR"),
    Finding("torch", FAILED, "torch 2.15.0 does not load", "make setup"),
    Finding("GPUs", ABSENT, "no GPU"),
]


def test_text_is_aligned_with_the_remedy_below():
    """One line a check; what was found begins in one column, and so does each remedy, in the next line."""
    assert as_text(FINDINGS).splitlines() == [
        "ok        cores            2",
        "warning   temporary files  0.4 GiB free in /tmp",
        "                           -> set TMPDIR",
        "failed    torch            torch 2.15.0 does not load",
        "                           -> make setup",
        "not here  GPUs             no GPU",
        "4 checks: 1 ok, 1 warning, 1 failed, 1 not here",
    ]


def test_json_holds_what_the_text_says():
    """The text can be written again from the JSON, and the context is there."""
    told = json.loads(as_json(FINDINGS, {"host": "node7"}))
    assert told["host"] == "node7"
    assert told["exit_code"] == 1
    assert as_text([Finding(**row) for row in told["findings"]]) == as_text(FINDINGS)


@pytest.mark.parametrize(("level", "code"), list(zip(LEVELS, (0, 0, 1, 0), strict=True)))
def test_only_failures_count(level, code):
    """Warnings and what nobody needs leave exit code 0."""
    assert doctor_exit_code([FINDINGS[0], Finding("x", level, "y")]) == code


def test_a_level_that_does_not_exist_is_a_bug():
    """A misspelt level would be counted nowhere."""
    with pytest.raises(AssertionError, match="fatal"):
        Finding("x", "fatal", "y")
