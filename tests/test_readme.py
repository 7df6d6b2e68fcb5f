"""The README says nothing that the checkout does not hold."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import module_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_checkout():
    """One line a file, as the modules' own docstrings have it; `python docs/tree.py --write` renews it."""
    printed = subprocess.run([sys.executable, "docs/tree.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() in TEXT


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT))))
def test_links_lead_somewhere(target):
    """Every relative link and picture exists."""
    assert (ROOT / target).exists()


@pytest.mark.parametrize("claim", sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::\w+)?`", TEXT))))
def test_cited_tests_exist(claim):
    """A claim that names its test names one that exists."""
    assert (ROOT / claim).is_file()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (\w+) (\w+)", TEXT))))
def test_commands_exist(command):
    """Every front-door command, and every benchmark, that the README shows is one."""
    room, name = command
    module = import_module(f"{room}.__main__" if room != "benchmarks" else module_of(name))
    assert callable(module.main) if room == "benchmarks" else name in module.COMMANDS
