"""The table of a training's faults has a row for each case, and playing some of them keeps the rows of the others."""

import re

from benchmarks.training_faults import CASES, MARKS, PAGE, updated


def faults_of(page: str) -> list[tuple[str, str]]:
    table = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    (header, *rows) = re.findall(r"^\| (.+?) \| (.+?) \|", table, flags=re.MULTILINE)
    assert header == ("fault", "outcome")
    return rows


def test_the_page_has_a_row_for_each_case():
    """In their order: a case that is new, gone or renamed has to be played again."""
    assert faults_of(PAGE.read_text()) == [(case.fault, case.outcome) for case in CASES]


def test_cases_that_were_not_played_keep_their_rows():
    """Rows of cases that are gone go, and the order is that of the cases."""
    page = PAGE.read_text()
    new = f"| {CASES[1].fault} | another outcome | 0 | - | 1 | 0 |\n"
    after = updated(page.replace(CASES[0].fault, "a case that is gone"), {CASES[1].fault: new})
    assert faults_of(after) == [(CASES[1].fault, "another outcome"), *((c.fault, c.outcome) for c in CASES[2:])]
    assert after.startswith(page.partition(MARKS[0])[0])
    assert after.endswith(page.partition(MARKS[1])[2])
