"""docs/*.md and the benchmarks' results: all files, modules, links and commands that they name exist."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from benchmarks.__main__ import module_of

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]
ROOMS = ("pupujepa", "data", "distributed", "sweeps", "benchmarks", "tests", "docs", "examples", "slurm")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./-]+\.(?:py|md|csv|yaml|sbatch|sh)")
MODULE = re.compile(rf"(?:{'|'.join(ROOMS[:5])})(?:\.[a-zA-Z_]\w*)+")
# an axis of sweeps, not a module
SETTINGS = {"data.share"}


def spans(page: Path, pattern: re.Pattern[str]) -> list[str]:
    """Returns the code spans of a page that match as a whole."""
    return sorted({span for span in CODE.findall(page.read_text()) if pattern.fullmatch(span)})


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def named(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Returns (page, span) for every matching code span of all pages."""
    return [(page.name, span) for page in PAGES for span in spans(page, pattern)]


@pytest.mark.parametrize(("page", "path"), named(FILE))
def test_files_exist(page, path):
    """A path in backticks is a file of this repository."""
    assert (ROOT / path).is_file(), page


@pytest.mark.parametrize(("page", "name"), [pair for pair in named(MODULE) if pair[1] not in SETTINGS])
def test_modules_exist(page, name):
    """A dotted name of our rooms in backticks is a module, or a name in one."""
    assert resolve_name(name) is not None, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """A relative link or picture is a file, and its anchor is a heading there."""
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        path, _, fragment = target.partition("#")
        there = page.parent / path if path else page
        assert there.is_file(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    """Every `python -m ROOM COMMAND` is a command of that room or a benchmark."""
    for room, name in set(re.findall(r"python -m (\w+)\s+([a-z_]\w*)", page.read_text())):
        module = import_module(module_of(name) if room == "benchmarks" else f"{room}.__main__")
        assert callable(module.main) if room == "benchmarks" else name in module.COMMANDS, (room, name)


def test_every_kind_of_name_is_found():
    """None of the checks above is empty."""
    assert len(named(FILE)) > 30
    assert len(named(MODULE)) > 3
