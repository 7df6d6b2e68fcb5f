"""Front doors: one sentence for what the user can mend, a traceback for what the user cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from pupujepa.errors import UserError
from pupujepa.front_door import Command, enter, require_own_rooms

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    (tmp_path / "fake_command.py").write_text(
        '"""Adds one.\n\nExample: add 3"""\n'
        "from pupujepa.errors import UserError\n"
        "def add_arguments(parser):\n    parser.add_argument('number', type=int)\n"
        "def run(args):\n"
        "    if args.number < 0:\n        raise UserError('number -1 is negative; give one that is not')\n"
        "    if args.number == 0:\n        raise ZeroDivisionError\n"
        "    return args.number\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return {"add": Command("fake_command", "adds one"), "other": Command("module_that_does_not_exist", "not imported")}


def test_the_command_runs_and_its_code_is_returned(fake_command):
    """Only the chosen command's module is imported, and its return value is the exit code."""
    assert enter("pupujepa", fake_command, manual="m", argv=["add", "3"]) == 3


def test_a_user_error_is_one_sentence(fake_command, capsys):
    """UserError: one line on stderr, exit code 2, no traceback."""
    assert enter("pupujepa", fake_command, manual="m", argv=["add", "-1"]) == 2
    assert capsys.readouterr().err == "error: number -1 is negative; give one that is not\n"


def test_a_crash_is_not_swallowed(fake_command):
    """Anything else propagates: a crash never exits 0 or hides its traceback."""
    with pytest.raises(ZeroDivisionError):
        enter("pupujepa", fake_command, manual="m", argv=["add", "0"])


def test_help_shows_the_module_manual(fake_command, capsys):
    """The sub-command's help is the docstring of its module, example included."""
    with pytest.raises(SystemExit) as stop:
        enter("pupujepa", fake_command, manual="m", argv=["add", "--help"])
    assert stop.value.code == 0
    assert "Example: add 3" in capsys.readouterr().out


def test_a_foreign_room_is_refused(tmp_path, monkeypatch):
    """Somebody else's `data` package on the path is named, with the remedy."""
    with pytest.raises(UserError, match=r"'data' is found at .*; start from the checkout's root"):
        require_own_rooms(tmp_path)


@pytest.mark.parametrize("room", ["data", "distributed", "sweeps"])
def test_entry_points_fail_clearly_beside_foreign_packages(room, tmp_path):
    """Started where another `data` comes first, a front door says so and exits 2."""
    for name in {"data", "distributed", "sweeps"} - {room}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / room).symlink_to(ROOT / room)
    ran = subprocess.run(
        [sys.executable, "-m", room, "--help"],
        cwd=tmp_path,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2, ran.stderr
    assert "is found at" in ran.stderr
