"""The table of training faults has a row for each case, and a partial run keeps the other rows."""

import re

import pytest

from benchmarks.training_faults import CASES, MARKS, PAGE, row_of, updated
from tests.distributed.fault_cases import Outcome


def faults_of(page: str) -> list[tuple[str, str]]:
    table = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    (header, *rows) = re.findall(r"^\| (.+?) \| (.+?) \|", table, flags=re.MULTILINE)
    assert header == ("fault", "outcome")
    return rows


def test_the_page_has_a_row_for_each_case():
    """The rows are in the order of the cases, so a new, removed or renamed case must be measured again."""
    assert faults_of(PAGE.read_text()) == [(case.fault, case.outcome) for case in CASES]


def test_cases_that_were_not_played_keep_their_rows():
    """Rows of removed cases disappear, and the order is that of the cases."""
    page = PAGE.read_text()
    new = f"| {CASES[1].fault} | another outcome | 0 | - | 1 | 0 |\n"
    after = updated(page.replace(CASES[0].fault, "a case that is gone"), {CASES[1].fault: new})
    assert faults_of(after) == [(CASES[1].fault, "another outcome"), *((c.fault, c.outcome) for c in CASES[2:])]
    assert after.startswith(page.partition(MARKS[0])[0])
    assert after.endswith(page.partition(MARKS[1])[2])


@pytest.mark.parametrize(("codes", "said"), [((0, 0), "nothing"), ((86, 86), "step 10: asked to stop")])
def test_a_fault_that_did_not_strike_is_no_row(codes, said):
    """Nor is one with another outcome: the table has observed outcomes only."""
    outcome = Outcome([codes], (said,), losses={}, skipped=[], counters={}, seconds=1.0)
    with pytest.raises(RuntimeError, match=r"SIGTERM on one rank: exit codes"):
        row_of(CASES[0], outcome, lost_s=0.0)
