"""README, CONTRIBUTING and the claims say nothing that the checkout does not hold."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import module_of

ROOT = Path(__file__).parents[1]
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md", "docs/claims.md")}
TEXT = "\n".join(PAGES.values())
LINKS = sorted({(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text)})


def test_the_map_is_the_checkout():
    """One line a folder, as the packages' own docstrings have it; `python docs/tree.py --write` renews it."""
    printed = subprocess.run([sys.executable, "docs/tree.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() in PAGES["CONTRIBUTING.md"]


def test_the_readme_is_short():
    """About 1,200 words: five minutes."""
    assert 900 < len(PAGES["README.md"].split()) < 1400


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page, link):
    """Every relative link and picture exists."""
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./-]+/(?:[\w.-]+\.\w+)?)`", TEXT))))
def test_cited_paths_exist(path):
    """A file, folder or test that is named exists; RUN/ is a run's own, and runs/ and vectors/ are made by commands."""
    assert path.startswith(("runs/", "RUN/", "vectors/", "songs/")) or (ROOT / path).exists()


def test_every_claim_names_a_test():
    """Each row of the claims ends with a test that exists."""
    rows = [row for row in PAGES["docs/claims.md"].splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py`", row.rpartition(" | ")[2])] == []


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (\w+) (\w+)", TEXT))))
def test_commands_exist(command):
    """Every front-door command, and every benchmark, that the README shows is one."""
    room, name = command
    module = import_module(f"{room}.__main__" if room != "benchmarks" else module_of(name))
    assert callable(module.main) if room == "benchmarks" else name in module.COMMANDS
