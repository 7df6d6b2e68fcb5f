"""The watchdog and the signs of life: who is gone, who stands still, who left and why."""

import faulthandler
import json
import os
import re
import threading
from dataclasses import replace

import pytest

from distributed.processes.heartbeats import FOLDER_NAME, Heartbeats
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


def test_a_rank_that_left_with_an_error_is_told_and_this_one_raises_its_own(tmp_path, caplog):
    """What the other said is in the log; this process is not ended, so that its own error is seen."""
    other = beats(tmp_path, 1)
    other.write(replace(other.own, ended="StreamError: too many damaged samples"))
    grow_old(tmp_path, 1, 600)
    said, codes = explained(tmp_path, RuntimeError("Connection reset by peer"), caplog)
    assert codes == []
    assert "which ended: StreamError: too many damaged samples" in said


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
    with Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER):
        beats(tmp_path, 0).remove_of_earlier_sessions()
        assert [path.name for path in (tmp_path / FOLDER_NAME).iterdir()] == ["now-rank-00000.json"]
    assert not (tmp_path / FOLDER_NAME).exists()


def test_an_error_is_left_for_the_others(tmp_path):
    """A rank that leaves by an error has said which."""
    with pytest.raises(UserError), Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER):
        raise UserError("damaged")
    assert json.loads(next((tmp_path / FOLDER_NAME).iterdir()).read_text())["ended"] == "UserError: damaged"


def test_a_disk_that_takes_no_signs_does_not_end_the_run(tmp_path, caplog):
    """It is said once, and watching goes on."""
    (tmp_path / FOLDER_NAME).write_text("a file where the folder should be")
    watchdog = Watchdog(beats(tmp_path, 0), Whereabouts(), limits=NEVER)
    watchdog._beat()
    watchdog._beat(ended="over")
    faulthandler.cancel_dump_traceback_later()
    assert caplog.text.count("heartbeats cannot be written") == 1


def test_limits_follow_the_collectives():
    """A rank speaks before the collectives of the others fail; the limit of steps may be shorter."""
    assert FaultConfig().limits(600.0) == StallLimits(480.0, 480.0)
    assert FaultConfig(stall_s=60.0).limits(600.0) == StallLimits(60.0, 480.0)
    with pytest.raises(UserError, match=r"faults\.stall_s"):
        FaultConfig(stall_s=-1.0)
    with pytest.raises(UserError, match=r"faults\.skipped_in_row"):
        FaultConfig(skipped_in_row=-1)
