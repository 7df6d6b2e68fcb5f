"""Stopping on request: the flag, and what happens to signals in other processes."""

import os
import signal
import subprocess
import sys
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
        assert stop.received is number
    assert signal.getsignal(number) is before


def test_a_forked_child_dies_of_the_signal():
    """A child that inherits the handler must still be terminable."""
    ready, tell = os.pipe()
    with StopRequest():
        child = os.fork()
        if child == 0:
            os.write(tell, b".")
            time.sleep(30)
            os._exit(0)
        # a fresh child drops signals that come before it runs
        assert os.read(ready, 1) == b"."
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(tell)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_processes_started_while_held_back_outlive_the_signal(number):
    """SLURM signals every process of a step; the data workers live on until the trainer has saved."""
    with StopRequest() as stop:
        with stop.held_back():
            worker = subprocess.Popen([sys.executable, "-c", "input(); print('alive')"], stdin=-1, stdout=-1)
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
        for process in (worker, other):
            os.kill(process.pid, number)
        out, _ = worker.communicate(b"\n", timeout=20)
        assert out == b"alive\n"
        assert other.wait(timeout=20) == -number
        other.stdin.close()
        assert stop.received is None


def test_a_signal_held_back_arrives_afterwards():
    """Nothing is lost: a signal during the start of the workers is seen right after it."""
    with StopRequest() as stop:
        with stop.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received is None
        assert stop.received is signal.SIGTERM
