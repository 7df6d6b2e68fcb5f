"""Front doors: one sentence for errors that the user can mend, a traceback for all others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pupujepa.errors import UserError
from pupujepa.front_door import Command, enter, quiet_when_unread, require_own_rooms

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    (tmp_path / "fake_command.py").write_text(
        '"""Adds one.\n\nExample: add 3"""\n'
        "from pupujepa.errors import UserError\n"
        "def add_arguments(parser):\n    parser.add_argument('number', type=int)\n"
        "    parser.add_argument('--peak', type=float)\n"
        "    parser.add_argument('--from-to', type=float, nargs=2)\n"
        "def run(args):\n"
        "    if args.number < 0:\n        raise UserError('number -1 is negative; give one that is not')\n"
        "    if args.number == 0:\n        raise ZeroDivisionError\n"
        "    if args.number == 130:\n        raise KeyboardInterrupt\n"
        "    return args.number\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "long_list.py").write_text(
        '"""Writes as much as it is told to."""\nimport sys\n'
        "def add_arguments(parser):\n    parser.add_argument('lines', type=int)\n"
        "def run(args):\n"
        "    for i in range(args.lines):\n        sys.stdout.write(f'{i}\\n')\n"
        "    if not args.lines:\n        raise ZeroDivisionError('a crash')\n"
        "    return 0\n"
    )
    return {"add": Command("fake_command", "adds one"), "other": Command("module_that_does_not_exist", "not imported")}


def test_the_command_runs_and_its_code_is_returned(fake_command):
    """Only the chosen command's module is imported, and its return value is the exit code."""
    assert enter("pupujepa", fake_command, manual="m", argv=["add", "3"]) == 3


def test_a_user_error_is_one_sentence(fake_command, capsys):
    """UserError: one line on stderr, exit code 2, no traceback."""
    assert enter("pupujepa", fake_command, manual="m", argv=["add", "-1"]) == 2
    assert capsys.readouterr().err == "error: number -1 is negative; give one that is not\n"


@pytest.mark.parametrize("words", [["--peak", "nan"], ["--from-to", "1", "inf"], ["--peak", "1e400"]])
def test_numbers_are_finite(fake_command, capsys, words):
    """A NaN would pass every check of a range; the sentence names the option."""
    with pytest.raises(SystemExit, match="2"):
        enter("pupujepa", fake_command, manual="m", argv=["add", "3", *words])
    assert f"error: argument {words[0]}: " in capsys.readouterr().err
    assert enter("pupujepa", fake_command, manual="m", argv=["add", "3", "--from-to", "1", "2"]) == 3


def test_ctrl_c_is_one_line(fake_command, capsys):
    """A command with nothing to save says so and ends with 130, as a shell reports SIGINT; no traceback."""
    with pytest.raises(SystemExit) as stop:
        enter("pupujepa", fake_command, manual="m", argv=["add", "130"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_crash_is_not_swallowed(fake_command):
    """Anything else propagates: a crash never exits 0 or hides its traceback."""
    with pytest.raises(ZeroDivisionError):
        enter("pupujepa", fake_command, manual="m", argv=["add", "0"])


def unread(code, *, stderr=subprocess.PIPE, cwd=ROOT):
    """Runs Python with an output whose reader left before the start; returns the exit code and stderr."""
    # argparse takes no offence at help that nobody reads, where each write goes out at once
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)  # from now on nothing can be written, at whatever moment it is tried
    try:
        ran = subprocess.run(
            [sys.executable, *code],
            cwd=cwd,
            env={**environment, "PYTHONPATH": str(ROOT)},
            check=False,
            stdout=writer,
            stderr=writer if stderr is None else stderr,
            text=True,
        )
    finally:
        os.close(writer)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("room", ["pupujepa", "data", "distributed", "sweeps", "benchmarks"])
def test_every_front_door_ends_quietly_when_nobody_reads(room):
    """`python -m ROOM ... | head` after head has gone: no traceback, and the code of a tool that SIGPIPE killed."""
    assert unread(["-m", room, "--help"]) == (141, "")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_listing_that_nobody_reads_ends_quietly(fake_command, tmp_path, lines):
    """Output that fails when the buffer is full, or only at the end, ends alike; with stderr in the same pipe too."""
    command = "{'list': Command('long_list', 'lists')}"
    code = f"import sys; from pupujepa.front_door import *; sys.exit(enter('pupujepa', {command}, manual='m'))"
    assert unread(["-c", code, "list", str(lines)], cwd=tmp_path) == (141, "")
    assert unread(["-c", code, "list", str(lines)], cwd=tmp_path, stderr=None)[0] == 141
    crashed, told = unread(["-c", code, "list", "0"], cwd=tmp_path)
    assert "ZeroDivisionError: a crash" in told
    assert crashed not in (0, 141)


@pytest.mark.parametrize("lines", ["1", "100000"])
def test_output_to_a_full_disk_is_one_sentence(fake_command, tmp_path, lines):
    """No room for the output: exit code 2 and the cause, whether a line or only the end fails."""
    command = "{'list': Command('long_list', 'lists')}"
    code = f"import sys; from pupujepa.front_door import *; sys.exit(enter('pupujepa', {command}, manual='m'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code, "list", lines]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            run, cwd=tmp_path, env=environment, check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ran.returncode == 2
    assert ran.stderr == "error: standard output goes to a disk that is full; free some of it\n"


def test_another_full_disk_is_a_crash():
    """An error of a file that the command writes keeps its traceback: the sentence is about standard output only."""
    with pytest.raises(OSError, match="No space left"), quiet_when_unread(), Path("/dev/full").open("w") as full:
        full.write("x")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_does_not_matter(fake_command, tmp_path, closed):
    """Started without a standard output or error, a command works and says nothing."""
    code = "import sys; from pupujepa.front_door import *; "
    code += "sys.exit(enter('pupujepa', {'list': Command('long_list', 'lists')}, manual='m'))"
    line = f'exec "{sys.executable}" -c "{code}" list 3 {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_other_broken_pipes_are_crashes(capfd):
    """A peer or a store that closes its connection is not a reader of our output: its error keeps its traceback."""
    with pytest.raises(BrokenPipeError, match="the peer"), quiet_when_unread():
        raise BrokenPipeError("the peer has hung up")


def test_help_shows_the_module_manual(fake_command, capsys):
    """The sub-command's help is the docstring of its module, example included."""
    with pytest.raises(SystemExit) as stop:
        enter("pupujepa", fake_command, manual="m", argv=["add", "--help"])
    assert stop.value.code == 0
    assert "Example: add 3" in capsys.readouterr().out


def test_a_foreign_room_is_refused(tmp_path, monkeypatch):
    """The error names another `data` package on the path, with the remedy."""
    with pytest.raises(UserError, match=r"'data' is found at .*; start from the checkout's root"):
        require_own_rooms(tmp_path)


@pytest.mark.parametrize("room", ["data", "distributed", "sweeps"])
def test_entry_points_fail_clearly_beside_foreign_packages(room, tmp_path):
    """Where another `data` comes first on the path, a front door says so and exits 2."""
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
