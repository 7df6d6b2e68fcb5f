"""The lock of a folder: it names its one holder, is free again however that one ends, and leaves no file."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pupujepa.errors import UserError
from pupujepa.locks import LOCK_NAME, only_writer

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"` until its input is closed or it is killed."""
    code = (
        "import sys; from pathlib import Path; from pupujepa.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_who_is_there(holder, tmp_path):
    """Without a wait the second process stops at once and names the first; the lock stays with the first."""
    for _ in range(2):
        with (
            pytest.raises(UserError, match=rf"run is being written by process {holder.pid} on \S+; two writers"),
            only_writer(tmp_path / "run"),
        ):
            pytest.fail("two writers")
    assert (tmp_path / "run" / LOCK_NAME).is_file()


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_the_next_writer_waits_for_the_first_to_end(holder, tmp_path, caplog, end):
    """Neither SIGKILL nor an orderly end leaves a stale lock: the waiting process continues, and named the holder."""
    waiting, entered = threading.Event(), threading.Event()

    def wait_for_it():
        waiting.set()
        with only_writer(tmp_path / "run", wait_s=PATIENCE_S):
            entered.set()

    second = threading.Thread(target=wait_for_it)
    second.start()
    assert waiting.wait(PATIENCE_S)
    while not caplog.records:  # it has found the lock taken
        assert second.is_alive()
        assert not entered.wait(0.05)
    assert f"waiting up to 120 s for process {holder.pid} on" in caplog.text
    holder.kill() if end == "kill" else holder.stdin.close()
    second.join(PATIENCE_S)
    assert entered.is_set()
    assert list((tmp_path / "run").iterdir()) == []


def test_many_writers_take_turns(tmp_path):
    """Of threads that each remove their lock file, never two are inside at once."""
    inside, most, rounds = [], [], 40

    def come_and_go(name):
        for _ in range(rounds):
            with only_writer(tmp_path, wait_s=PATIENCE_S):
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)

    writers = [threading.Thread(target=come_and_go, args=(name,)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    assert most == [1] * (3 * rounds)


def test_a_check_is_made_while_waiting_and_again_with_the_lock(holder, tmp_path):
    """What another writer leaves between the first look and the lock is seen; a refusal frees the folder."""
    looks = []

    def look():
        looks.append(None)
        if len(looks) == 2:
            holder.kill()
            holder.wait()
        if len(looks) > 2:
            raise UserError("it holds something else")

    with (
        pytest.raises(UserError, match="it holds something else"),
        only_writer(tmp_path / "run", wait_s=PATIENCE_S, check=look),
    ):
        pytest.fail("the check was not made")
    assert list((tmp_path / "run").iterdir()) == []


def test_writers_of_separate_files_may_share_a_folder(tmp_path):
    """Locks of two names exclude nobody from each other."""
    with only_writer(tmp_path), only_writer(tmp_path, name=".results.lock"):
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_lock_that_cannot_be_taken_now_is_not_done_without(tmp_path, monkeypatch, code):
    """A failing disk, a stale handle and too many open files do not mean a file system without locks."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pupujepa.locks.fcntl.flock", fail)
    message = rf"cannot be locked now \({os.strerror(code)}, errno {code}\), so nothing was written"
    with pytest.raises(UserError, match=message), only_writer(tmp_path):
        pytest.fail("it wrote without a lock")


def test_an_error_inside_frees_the_folder(tmp_path):
    """The folder is free after a failure, and the caller sees the failure."""
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_read_only_does_not_hide_the_error(tmp_path, monkeypatch):
    """The caller sees what ended its work, not that the lock file could not be removed."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    """On a file system without locks there is one warning, and the work continues."""

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pupujepa.locks.fcntl.flock", no_locks)
    with only_writer(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
    assert len(caplog.records) == 1
