"""Stopping on request: the flag, and what happens to signals in other processes."""

import os
import signal
import time

import pytest

from distributed.preemption import EXIT_CODE_REQUEUE, STOP_SIGNALS, StopRequest


def test_the_code_that_slurm_requeues():
    """85 is what slurm.conf lists under RequeueExit; 0 would end the job for good."""
    assert EXIT_CODE_REQUEUE == 85


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_only_sets_a_flag(number):
    """The process goes on after the signal, which it remembers; outside the block the old handler is back."""
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.received)
        assert stop.received is number
    assert signal.getsignal(number) is before


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
