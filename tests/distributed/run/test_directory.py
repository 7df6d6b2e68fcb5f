"""The run directory: one writer, and files that are never half written."""

import threading

import pytest

from distributed.run.directory import (
    RunDirectory,
    RunDirectoryError,
    lock_run,
    read_sessions,
    write_atomically,
    write_json,
)
from pupujepa.errors import UserError


def test_a_url_is_refused(tmp_path):
    """Object stores have neither rename nor fsync; the message says so."""
    with pytest.raises(RunDirectoryError, match="give a directory that all nodes share"):
        RunDirectory("s3://bucket/run")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    """While a file is replaced a hundred times, no read is torn and nothing is left over."""
    path = tmp_path / "state.json"
    write_atomically(path, "0" * 5000)
    done = threading.Event()
    seen: set[str] = set()

    def read():
        while True:
            seen.add(path.read_text())
            if done.is_set():
                return

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        write_atomically(path, str(i % 10) * 5000)
    done.set()
    reader.join()
    assert {len(text) for text in seen} == {5000}
    assert {len(set(text)) for text in seen} == {1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_json_round_trips(tmp_path):
    """What is written as JSON is read back equal, floats to the last bit."""
    import json

    value = {"loss": 0.1 + 0.2, "steps": [1, 2]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value


@pytest.mark.parametrize("content", [b"", b"\0\0", b'[{"step": 0', b"7"])
def test_a_damaged_history_is_named(tmp_path, caplog, content):
    """A crash of the machine may leave it empty: the run and its report do without it."""
    run = RunDirectory(tmp_path)
    assert read_sessions(run) == []
    assert not caplog.records
    run.history.write_bytes(content)
    assert read_sessions(run) == []
    assert f"{run.history} is damaged" in caplog.text


def test_a_second_writer_is_refused(tmp_path, monkeypatch):
    """Two trainers over the same checkpoints would mix two runs: the second one is told who writes, and stops."""
    monkeypatch.setattr("distributed.run.directory.WRITER_WAIT_S", 0.0)
    run = RunDirectory(tmp_path / "run")
    refused = pytest.raises(UserError, match=r"run is being written by process \d+ on ")
    with lock_run(run), refused, lock_run(run):
        pytest.fail("two writers")
    with lock_run(run):
        pass
