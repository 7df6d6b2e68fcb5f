"""The leash: whatever ends the owner ends everything that was started, also what left its session."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.trials.leash import Leash, descendants
from tests.processes import is_running

ROOT = Path(__file__).parents[3]
# a launcher that starts a rank in a session of its own, as torchrun does, and writes both process ids
LAUNCHER = """
import os, signal, subprocess, sys, time
{prelude}
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1] + ".new", "w").write(f"{{os.getpid()}} {{rank.pid}}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
{rest}
"""


def launcher(prelude: str = "", rest: str = "time.sleep(600)") -> str:
    return LAUNCHER.format(prelude=prelude, rest=rest)


def start(tmp_path: Path, code: str, *, grace_s: float = 100.0) -> tuple[Leash, Path]:
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", code, str(pids)]
    return Leash(command, env=os.environ, cwd=ROOT, log=tmp_path / "log", grace_s=grace_s), pids


def written(path: Path) -> list[int]:
    wait_until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def wait_until(condition, timeout_s: float = 200.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_ending_kills_ranks_that_left_the_process_group(tmp_path):
    """Killing the launcher's group would leave its ranks; the leash finds them as its descendants."""
    leash, path = start(tmp_path, launcher())
    pids = written(path)
    assert set(pids) <= set(descendants(os.getpid()))
    assert leash.end() == 128 + signal.SIGTERM
    assert not any(is_running(pid) for pid in pids)


def test_who_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    """The grace is for saving, not for staying."""
    leash, path = start(tmp_path, launcher(prelude="signal.signal(signal.SIGTERM, signal.SIG_IGN)"), grace_s=0.5)
    pids = written(path)
    started = time.monotonic()
    assert leash.end() == 128 + signal.SIGKILL
    assert 0.5 <= time.monotonic() - started < 300, "it left by itself"
    assert not any(is_running(pid) for pid in pids)


def test_a_command_that_saves_on_sigterm_keeps_its_exit_code(tmp_path):
    """The trainer's own way to stop, with its exit code, is left to it."""
    leash, path = start(tmp_path, launcher(prelude="signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))"))
    written(path)
    assert leash.end() == 85


def test_what_a_finished_command_leaves_behind_is_ended(tmp_path):
    """A rank that outlives its launcher would hold the GPU of the next trial."""
    leash, path = start(tmp_path, launcher(rest="sys.exit(3)"))
    _, rank = written(path)
    wait_until(lambda: leash.poll() is not None)
    assert leash.end() == 3
    assert not is_running(rank)


@pytest.mark.parametrize("victim", ["owner", "leash"])
def test_sigkill_of_owner_or_leash_ends_the_command(tmp_path, victim):
    """No process can act on its own SIGKILL: the pipe and the kernel do it for the owner and the leash."""
    owner_code = (
        "import os, sys, time; from pathlib import Path; from sweeps.trials.leash import Leash, descendants; "
        "leash = Leash([sys.executable, '-c', sys.argv[2], sys.argv[1]], env=os.environ, cwd=Path.cwd(), grace_s=1.0); "
        "print(descendants(os.getpid())[0], flush=True); time.sleep(600)"
    )
    # the rank stays in its launcher's hands when the leash dies, as torchrun's do
    code = launcher(prelude="signal.signal(signal.SIGTERM, lambda *_: (rank.kill(), sys.exit(0)))")
    pids = tmp_path / "pids"
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_code, str(pids), code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        leash_pid = int(owner.stdout.readline())
        command = written(pids)
        os.kill({"owner": owner.pid, "leash": leash_pid}[victim], signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in command))
    finally:
        owner.kill()
        owner.communicate()


def test_output_goes_to_the_log_and_the_directory_is_removed(tmp_path):
    """The log is appended to; a private directory goes with the command, whatever its end."""
    private, log = tmp_path / "private", tmp_path / "log"
    private.mkdir()
    (private / "socket").touch()
    log.write_text("before\n")
    command = [sys.executable, "-c", "print('from the command')"]
    leash = Leash(command, env=os.environ, cwd=ROOT, log=log, remove=private)
    wait_until(lambda: leash.poll() is not None)
    assert leash.end() == 0
    assert log.read_text() == "before\nfrom the command\n"
    assert not private.exists()
