"""Stopping on request: the flag, and what happens to signals in other processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from distributed.processes.stop import EXIT_CODE_REQUEUE, NOTICE_S, STOP_SIGNALS, StopRequest, duration_s, end_of_time_s
from pupujepa.errors import UserError


def test_the_code_that_slurm_requeues():
    """85 is what slurm.conf lists under RequeueExit; 0 would end the job for good."""
    assert EXIT_CODE_REQUEUE == 85


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_only_sets_a_flag(number):
    """The process goes on after the signal, which it remembers; outside the block the old handler is back."""
    inherited = signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.received)
        assert stop.received is number
    assert signal.getsignal(number) is before
    signal.signal(number, inherited)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_nohup_ignores_stays_ignored(number):
    """A terminal that closes must not stop a training that was started to outlive it."""
    inherited = signal.signal(number, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    assert stop.received is None
    signal.signal(number, inherited)


STOPPED_TWICE = """
import os, signal, time
from distributed.processes.stop import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.received.name, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
"""


def test_a_second_ctrl_c_ends_at_once():
    """By the kernel, without a traceback: whoever presses twice does not want to wait for a checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_TWICE], check=False, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "SIGINT\n", "")


def wait_until(condition) -> None:
    """Any thread of the process may take a signal; Python then runs the handler in this one, a little later."""
    deadline = time.monotonic() + 100
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_forked_child_dies_of_the_signal():
    """A child that inherits the handler must still be terminable."""
    ready, tell = os.pipe()
    with StopRequest():
        child = os.fork()
        if child == 0:
            os.write(tell, b".")
            time.sleep(600)
            os._exit(0)
        # a fresh child drops signals that come before it runs
        assert os.read(ready, 1) == b"."
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(tell)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize(
    ("text", "seconds"), [("1:30", 90), ("3:55:00", 14_100), ("2-00:00:01", 172_801), ("119:00", 7140)]
)
def test_a_time_limit_is_read_as_slurm_writes_it(text, seconds):
    """Days, hours, minutes and seconds."""
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["90", "1h", "", "1:2:3:4", "-1:00"])
def test_other_time_limits_are_refused(text):
    """A bare number too: minutes to SLURM, seconds to others."""
    with pytest.raises(UserError, match="write hours:minutes:seconds"):
        duration_s(text)


def test_the_earlier_end_counts():
    """The job's end and the process's own limit; a job's end that is no number is refused, not ignored."""
    job = {"SLURM_JOB_END_TIME": "5000"}
    assert end_of_time_s({}, time_limit=None, now_s=0.0) is None
    assert end_of_time_s(job, time_limit=None, now_s=0.0) == 5000
    assert end_of_time_s(job, time_limit="1:00:00", now_s=0.0) == 3600
    assert end_of_time_s(job, time_limit="1:00:00", now_s=4000.0) == 5000
    with pytest.raises(UserError, match="would not stop in time"):
        end_of_time_s({"SLURM_JOB_END_TIME": "tomorrow"}, time_limit=None, now_s=0.0)


def test_the_clock_asks_early_enough_for_what_saving_takes():
    """A stop is due when less is left than the notice and the time needed; never without an end."""
    stop = StopRequest(ends_s=1000.0)
    assert not stop.requested(100.0, clock=lambda: 899.0 - NOTICE_S)
    assert stop.requested(100.0, clock=lambda: 900.0 - NOTICE_S)
    assert not StopRequest().requested(1e9)
