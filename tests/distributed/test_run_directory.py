"""The run directory: one writer, and files that are never half written."""

import subprocess
import sys
import threading
import time

import pytest

from distributed.run_directory import RunDirectory, RunDirectoryError, only_writer, write_atomically, write_json


def test_a_url_is_refused(tmp_path):
    """Object stores have neither rename nor fsync; the message says so."""
    with pytest.raises(RunDirectoryError, match="give a directory that all nodes share"):
        RunDirectory("s3://bucket/run")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    """While a file is replaced a thousand times, no read is torn and nothing is left over."""
    path = tmp_path / "state.json"
    write_atomically(path, "0" * 5000)
    done = threading.Event()
    seen: set[str] = set()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

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


def test_a_second_writer_is_refused_and_told_who_is_there(tmp_path):
    """Two trainers over the same checkpoints would mix two runs; the second one names the first and stops."""
    run = RunDirectory(tmp_path / "run")
    holder = _hold_lock(run.root)
    try:
        with (
            pytest.raises(RunDirectoryError, match=rf"being written by process {holder.pid} on "),
            only_writer(run, wait_s=0.5),
        ):
            pytest.fail("two writers")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_the_lock_of_a_killed_writer_is_free(tmp_path):
    """SIGKILL leaves no stale lock: the next writer waits for the process to be gone and goes on."""
    run = RunDirectory(tmp_path / "run")
    holder = _hold_lock(run.root)
    killer = threading.Timer(0.5, holder.kill)
    killer.start()
    started = time.monotonic()
    with only_writer(run, wait_s=20):
        assert time.monotonic() - started < 15
    holder.wait()
    holder.stdout.close()


def _hold_lock(root):
    code = (
        "import sys, time; from pathlib import Path; from distributed.run_directory import *\n"
        "with only_writer(RunDirectory(Path(sys.argv[1]))):\n  print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    return holder
