"""docs/differences.md: every table equals what is measured now."""

import re

import pytest

from docs.differences import PAGE, write
from docs.differences_measured import SECTIONS, SEED
from pupujepa.cost.cost import model_size
from pupujepa.model.model import PupuJEPA

TEXT = PAGE.read_text()
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def tiny():
    """The untrained model of the page."""
    return PupuJEPA(model_size("tiny"), seed=SEED).eval()


def on_the_page(name: str) -> str:
    """Returns a table of the page."""
    begin, end = f"<!-- {name}: python docs/differences.py --write -->\n", f"\n<!-- /{name} -->"
    return TEXT.partition(begin)[2].partition(end)[0]


@pytest.mark.parametrize("name", SECTIONS)
def test_tables_are_what_is_measured(name, tiny):
    """Words and whole numbers are equal; other numbers to their last digit or 2 %, since machines round differently."""
    shown, measured = on_the_page(name), SECTIONS[name](tiny)
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", measured)
    for one, other in zip(NUMBER.findall(shown), NUMBER.findall(measured), strict=True):
        decimals = len(one.partition(".")[2])
        if decimals == 0:
            assert one == other
        else:
            assert float(one) == pytest.approx(float(other), rel=0.02, abs=1.01 * 10**-decimals)


def test_the_page_has_a_table_for_every_measurement():
    """Page and code have the same tables, in the same order."""
    assert re.findall(r"<!-- (\w+): ", TEXT) == list(SECTIONS)


def test_a_missing_mark_is_an_error():
    """A table that has no marks in the page is not dropped silently."""
    with pytest.raises(SystemExit, match=r"the page lacks <!-- lost: python docs/.* restore both lines"):
        write({"lost": "| |"})
