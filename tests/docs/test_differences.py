"""docs/differences.md: its numbers are measured again, and its commands and options exist."""

import re
from importlib import import_module

import pytest

from docs.differences import PAGE, write
from docs.differences_measured import SECTIONS, SEED
from pupujepa.cost.sizes import model_size
from pupujepa.model.model import PupuJEPA

TEXT = PAGE.read_text()
ROOT = PAGE.parents[1]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def tiny():
    """The untrained model of the page."""
    return PupuJEPA(model_size("tiny"), seed=SEED).eval()


def on_the_page(name: str) -> str:
    """Returns a table as the page has it."""
    begin, end = f"<!-- {name}: python docs/differences.py --write -->\n", f"\n<!-- /{name} -->"
    return TEXT.partition(begin)[2].partition(end)[0]


@pytest.mark.parametrize("name", SECTIONS)
def test_tables_are_what_is_measured(name, tiny):
    """Words are the same; whole numbers too; others to their last digit or 2 %, as machines differ in rounding."""
    shown, measured = on_the_page(name), SECTIONS[name](tiny)
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", measured)
    for one, other in zip(NUMBER.findall(shown), NUMBER.findall(measured), strict=True):
        decimals = len(one.partition(".")[2])
        if decimals == 0:
            assert one == other
        else:
            assert float(one) == pytest.approx(float(other), rel=0.02, abs=1.01 * 10**-decimals)


def test_the_page_has_a_part_for_every_measurement():
    """No table is left over, on either side."""
    assert re.findall(r"<!-- (\w+): ", TEXT) == list(SECTIONS)


def test_a_lost_mark_is_an_error():
    """A table without its place in the page is not dropped."""
    with pytest.raises(SystemExit, match="has no part between <!-- lost"):
        write({"lost": "| |"})


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (\w+) (\w+)", TEXT))))
def test_commands_exist(command):
    """Every command that the page shows is one."""
    room, name = command
    assert name in import_module(f"{room}.__main__").COMMANDS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`?((?:tests|docs)/[\w/]+\.(?:py|md))", TEXT))))
def test_files_exist(path):
    """Every file that the page names exists."""
    assert (ROOT / path).is_file()
