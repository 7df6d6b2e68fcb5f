"""Starts the ranks of trainings, perhaps with a fault on one: `python faulty.py`, and a line of JSON for each training.

A line is {"fault": {"rank", "steps", "what"} or null, "ranks": [{"argv", "environ", "log"}, ...]}; the answer, a line
too, holds the exit codes. Ranks are forked from a process that has imported everything, which is most of a small
training's time. A fault strikes where its rank takes its batch, which is then what the rank had: NaN is in the data, a
hang is the loader's.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"  # read by DeepSpeed when it is imported

import deepspeed  # noqa: F401  all that a rank imports later
import torch._dynamo  # noqa: F401

from distributed import build, train  # noqa: F401
from distributed.__main__ import COMMANDS
from distributed.process_end import end_process
from pupujepa.front_door import enter

# how long a frozen rank is left alone when the other has ended: srun's --wait
PATIENCE_S = 2.0


class FaultyStream(build.Stream):
    """A stream that strikes its rank when it hands over a batch of certain steps."""

    fault: dict

    def __iter__(self):
        for batch in super().__iter__():
            struck = batch.step in self.fault["steps"]
            yield strike(self.fault["what"], batch) if struck else batch


def strike(what, batch):
    """Makes the batch worthless, or does something to this process."""
    if what == "nan":
        return replace(batch, mel=batch.mel * math.nan)
    if what == "hang":
        threading.Event().wait()
    # here and now, whatever threads there are
    signal.raise_signal(signal.Signals[what])
    return batch


def become_rank(rank, order):
    """Turns a fork of this process into a rank; returns its exit code."""
    place = order["ranks"][rank]
    os.environ.clear()
    os.environ.update(place["environ"])
    log = os.open(place["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["fault"] and order["fault"]["rank"] == rank:
        FaultyStream.fault = order["fault"]
        build.Stream = FaultyStream
    return enter("distributed", COMMANDS, manual="", argv=place["argv"])


def exit_codes(pids):
    """Waits for all; a process that is frozen is killed some time after another has ended."""
    codes, first_end_s = {}, 0.0
    while left := [pid for pid in pids if pid not in codes]:
        for pid in left:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                first_end_s = first_end_s or time.monotonic()
            elif first_end_s and time.monotonic() > first_end_s + PATIENCE_S and _is_frozen(pid):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _is_frozen(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def main():
    """Serves orders until there are no more; in a fork, is a rank and returns its exit code."""
    for line in iter(sys.stdin.readline, ""):
        order, pids = json.loads(line), []
        for rank in range(len(order["ranks"])):
            pids.append(os.fork())
            if not pids[-1]:
                return become_rank(rank, order)
        sys.stdout.write(json.dumps(exit_codes(pids)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    # a fork inherits threads' objects without the threads, which the ordinary end would trip over
    end_process(main())
