"""The watchdog and the signs of life: who is gone, who stands still, who left and why."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from distributed.processes import watchdog as watchdog_module
from distributed.processes.heartbeats import FOLDER_NAME, Heartbeats, RankFailure
from distributed.processes.watchdog import DATA, EXIT_CODE_LOST, StallLimits, Watchdog, Whereabouts
from distributed.watch.config import FaultConfig
from pupujepa.errors import UserError

NEVER = StallLimits(1e6, 1e6)


def beats(root, rank, world_size=2, session="now"):
    return Heartbeats(root, session, rank=rank, world_size=world_size)


def grow_old(root, rank, seconds):
    """Makes a sign as old as if its rank had been silent for so long."""
    path = root / FOLDER_NAME / f"now-rank-{rank:05d}.json"
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))


def explained(root, error, caplog):
    """What rank 0 makes of an error, and the exit code with which it leaves; None when it goes on."""
    codes = []
    with Watchdog(beats(root, 0), Whereabouts(), limits=NEVER, leave=codes.append) as watchdog:
        watchdog.explain(error)
    return caplog.text, codes


def test_a_silent_rank_is_named(tmp_path, caplog):
    """Rank 1 told nothing for ten minutes and had not said that it leaves: it is named with host, process and place."""
    other = beats(tmp_path, 1)
    other.write(replace(other.own, host="n2", pid=77, place=DATA, step=41))
    grow_old(tmp_path, 1, 600)
    said, codes = explained(tmp_path, RuntimeError("Connection reset by peer\nat gloo"), caplog)
    assert codes == [EXIT_CODE_LOST]
    assert re.search(r"rank 1 on n2 \(process 77\), silent for 6\d\d s, last seen in the wait", said)
    assert "in the wait for data (step 41): rank 0" in said
    assert "rank 0 cannot continue without it (Connection reset by peer)" in said


def test_a_sign_that_cannot_be_read_still_names_its_rank(tmp_path, caplog):
    """A crash of the file system leaves zeros, half a line or another's record: the age of the file is enough."""
    for content in (b"", b"\0" * 40, b'{"rank": 1, "ho', b"[]", b'{"rank": 1}', b"\xff"):
        (tmp_path / FOLDER_NAME).mkdir(exist_ok=True)
        (tmp_path / FOLDER_NAME / "now-rank-00001.json").write_bytes(content)
        grow_old(tmp_path, 1, 600)
        caplog.clear()
        said, codes = explained(tmp_path, RuntimeError("Connection reset by peer"), caplog)
        assert codes == [EXIT_CODE_LOST]
        assert "rank 1 on an unknown host (process 0), silent for" in said


def test_a_rank_that_failed_first_is_named_and_the_others_end_with_its_code(tmp_path, caplog):
    """Of two that failed, the earlier one; its error and its code explain the broken collective of this rank."""
    for rank, error in ((2, "StreamError: too many damaged samples"), (1, "KeyError: later")):
        beats(tmp_path, rank, world_size=3).mark_failure(RankFailure(rank, 2 if rank == 2 else 1, error))
    codes = []
    with Watchdog(beats(tmp_path, 0, world_size=3), Whereabouts(), limits=NEVER, leave=codes.append) as watchdog:
        beats(tmp_path, 1, world_size=3).write(beats(tmp_path, 1).own)
        watchdog.explain(RuntimeError("Connection reset by peer"))
    assert codes == [2]
    assert "rank 2 failed first (StreamError: too many damaged samples): rank 0 cannot continue without" in caplog.text


def test_a_rank_that_only_waits_ends_soon_after_another_has_failed(tmp_path, caplog, monkeypatch):
    """Its collective may never return; on a full disk the mark of the other is a name without content."""
    monkeypatch.setattr(watchdog_module, "_GRACE_S", 0.1)
    left, codes = threading.Event(), []

    def leave(code):
        codes.append(code)
        left.set()

    beats(tmp_path, 1).mark_failure(RankFailure(1, 1))
    with Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER, leave=leave):
        assert left.wait(100)
    assert codes == [1]
    assert "rank 1 failed first: rank 0 cannot continue. The steps since" in caplog.text


def test_an_error_is_told_while_its_rank_still_cleans_up(tmp_path):
    """The other ranks see it before this one has closed its log."""
    whereabouts = Whereabouts()
    with pytest.raises(UserError), Watchdog(beats(tmp_path, 0), whereabouts, limits=NEVER):
        whereabouts.fail(RuntimeError("Connection reset by peer"))  # of another rank that failed
        whereabouts.fail(UserError("damaged"))
        deadline = time.monotonic() + 100
        while not (failure := beats(tmp_path, 1).first_failure()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert failure == RankFailure(0, 2, "UserError: damaged")
        raise UserError("damaged")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes do not match")])
def test_an_error_of_its_own_is_raised_at_once(tmp_path, error):
    """Nobody else is looked at, although others are there: they wait for this rank to end."""
    other = beats(tmp_path, 1)
    other.write(other.own)
    grow_old(tmp_path, 1, 600)
    codes = []
    with Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER, leave=codes.append) as watchdog:
        watchdog.explain(error)
    assert codes == []


def test_a_connection_that_broke_for_no_known_reason_is_started_again(tmp_path, caplog):
    """All ranks live, so the network failed: the same command may succeed; the error is shown."""
    own, other, codes = beats(tmp_path, 0), beats(tmp_path, 1), []
    other.write(other.own)
    grow_old(tmp_path, 1, -3600)  # alive, however long this test takes
    own.silent_after_s, own.period_s = 0.1, 0.1
    with Watchdog(own, Whereabouts(), limits=NEVER, leave=codes.append) as watchdog:
        watchdog.explain(RuntimeError("Connection reset by peer"))
    assert codes == [EXIT_CODE_LOST]
    assert "no rank is known to be lost" in caplog.text
    assert "RuntimeError: Connection reset by peer" in caplog.text


WATCHED = """
import ctypes, sys, threading, time
from pathlib import Path
from distributed.processes.heartbeats import Heartbeats
from distributed.processes.watchdog import DATA, StallLimits, Watchdog, Whereabouts
beats, whereabouts = Heartbeats(Path(sys.argv[1]), "now", rank=0, world_size=1), Whereabouts()
beats.silent_after_s = 0.2
limit_s = float(sys.argv[2])
with Watchdog(beats, whereabouts, limits=StallLimits(limit_s, limit_s)):
    print("watched", flush=True)
    if sys.argv[3:]:
        mutex = bytes(64)
        for _ in range(2):  # waits for itself, without letting other threads run
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    sys.stdin.readline()
    time.sleep(1.5)
    print(whereabouts.now()[2] < limit_s, flush=True)
"""


def watched(*words):
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_was_stopped_continues(tmp_path):
    """SIGSTOP for longer than the limits, then SIGCONT: no stall, neither for Python nor for the timers below it."""
    process = watched(tmp_path, 5.0)
    assert process.stdout.readline() == "watched\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)
    process.send_signal(signal.SIGCONT)
    said, told = process.communicate("\n", timeout=300)
    assert (process.returncode, said) == (0, "True\n"), told
    assert re.search(r"rank 0 did not run for [5-9] s, as it was stopped; it continues", told)


def test_python_that_cannot_run_is_ended_by_the_kernel(tmp_path):
    """C code that never lets other threads run: the stacks are shown, and the process ends."""
    process = watched(tmp_path, 1.0, "hang")
    _, told = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGALRM
    assert "most recent call first" in told


def test_an_error_of_a_rank_alone_is_its_own(tmp_path, caplog):
    """One rank has nobody to wait for and nobody to blame."""
    codes = []
    heartbeats = beats(tmp_path, 0, world_size=1)
    with Watchdog(heartbeats, Whereabouts(), limits=NEVER, leave=codes.append) as watchdog:
        watchdog.explain(RuntimeError("out of memory"))
    assert (codes, caplog.text) == ([], "")


def test_a_rank_that_stands_still_shows_its_stacks_and_names_those_behind(tmp_path, caplog, capfd):
    """The main thread is in this test; rank 1 is at an earlier step, rank 2 at a later one."""
    for rank, step in ((1, 6), (2, 8)):
        other = beats(tmp_path, rank, world_size=3)
        other.write(replace(other.own, host=f"n{rank}", place=DATA, step=step))
    left, codes = threading.Event(), []

    def leave(code):
        codes.append(code)
        left.set()

    whereabouts = Whereabouts()
    whereabouts.at(DATA, 7)
    with Watchdog(beats(tmp_path, 0, world_size=3), whereabouts, limits=StallLimits(0.0, 0.0), leave=leave):
        assert left.wait(100)
    assert codes == [EXIT_CODE_LOST]
    assert "has been in the wait for data (step 7)" in caplog.text
    assert "it waits for rank 1 on n1" in caplog.text
    assert "rank 2" not in caplog.text
    assert "in test_a_rank_that_stands_still_shows_its_stacks" in capfd.readouterr().err


def test_only_later_steps_have_the_limit_of_steps():
    """The start, the first step of a session and what lies between steps may take longer."""
    whereabouts = Whereabouts()
    seen = [whereabouts.in_later_step()]
    for place, step in ((DATA, 40), ("the checkpoint", 41), (DATA, 41)):
        whereabouts.at(place, step)
        seen.append(whereabouts.in_later_step())
    assert seen == [False, False, False, True]


def test_leaving_in_order_leaves_nothing(tmp_path):
    """The folder goes with the last rank; what a killed session left goes with the next."""
    old = beats(tmp_path, 1, session="before")
    old.write(old.own)
    old.mark_failure(RankFailure(1, 1))
    with Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER):
        beats(tmp_path, 0).remove_of_earlier_sessions()
        assert [path.name for path in (tmp_path / FOLDER_NAME).iterdir()] == ["now-rank-00000.json"]
    assert not (tmp_path / FOLDER_NAME).exists()


def test_an_error_is_left_for_the_others(tmp_path):
    """A rank that leaves by an error has said which."""
    with pytest.raises(UserError), Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER):
        raise UserError("damaged")
    assert json.loads(next((tmp_path / FOLDER_NAME).glob("*.json")).read_text())["ended"] == "UserError: damaged"
    assert beats(tmp_path, 1).first_failure() == RankFailure(0, 2, "UserError: damaged")


def test_a_disk_that_takes_no_signs_does_not_end_the_run(tmp_path, caplog):
    """It is said once, and watching goes on."""
    (tmp_path / FOLDER_NAME).write_text("a file where the folder should be")
    watchdog = Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER)
    watchdog._beat()
    watchdog._beat(ended="over")
    assert caplog.text.count("heartbeats cannot be written") == 1


def test_limits_follow_the_collectives():
    """A rank speaks before the collectives of the others fail; the limit of steps may be shorter."""
    assert FaultConfig().limits(600.0) == StallLimits(480.0, 480.0)
    assert FaultConfig(stall_s=60.0).limits(600.0) == StallLimits(60.0, 480.0)
    with pytest.raises(UserError, match=r"faults\.stall_s"):
        FaultConfig(stall_s=-1.0)
    with pytest.raises(UserError, match=r"faults\.skipped_in_row"):
        FaultConfig(skipped_in_row=-1)
