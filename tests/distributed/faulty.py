"""A rank of a training that is struck by a fault, or by none; see rank_server.py, which starts it.

A fault strikes where its rank takes its batch, which is then what the rank had: NaN is in the data, a hang is the
loader's. With "within_s" it strikes at a random moment in the seconds after that, from another thread.
"""

import math
import multiprocessing
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from distributed import build
from distributed.__main__ import COMMANDS
from distributed.checkpoints import store
from pupujepa.front_door import enter


class FaultyStream(build.Stream):
    """A stream that strikes its rank when it hands over a batch of certain steps."""

    fault: dict

    def __iter__(self):
        for batch in super().__iter__():
            struck, within_s = batch.step in self.fault["steps"], self.fault.get("within_s")
            if struck and within_s:
                threading.Thread(target=strike_later, args=(self.fault["what"], within_s), daemon=True).start()
            yield strike(self.fault["what"], batch) if struck and not within_s else batch


def strike(what, batch):
    """Makes the batch worthless, or does something to this process."""
    if what == "nan":
        return replace(batch, offset=batch.offset * math.nan)
    if what == "hang":
        threading.Event().wait()
    if what == "broken checkpoint":
        store.digests_of_rank = break_down
        return batch
    if what == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if what in FROM_OUTSIDE:
        FROM_OUTSIDE[what]()
    else:
        # here and now, whatever threads there are
        signal.raise_signal(signal.Signals[what])
    return batch


def strike_later(what, within_s):
    """Strikes at any moment of a step, a checkpoint or whatever the main thread does by then."""
    time.sleep(random.uniform(0, within_s))
    if what in FROM_OUTSIDE:
        FROM_OUTSIDE[what]()
    else:
        os.kill(os.getpid(), signal.Signals[what])


def break_down(*_, **__):
    """Has a bug."""
    raise KeyError("a bug")


def kill_worker():
    """Kills a data worker of this rank, as the kernel does when memory runs out."""
    random.choice(multiprocessing.active_children()).kill()


def fill_disk():
    """Makes the disk of this rank's open log full: its next row gets the kernel's ENOSPC."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if link.readlink().name == "metrics.jsonl":
                os.dup2(os.open("/dev/full", os.O_WRONLY), int(link.name))


FROM_OUTSIDE = {"killed worker": kill_worker, "full disk": fill_disk}


def main(argv, fault):
    """Trains with the command line `argv`; {"rank", "steps", "what"}, if any, strikes that rank. The exit code."""
    if fault and str(fault["rank"]) == os.environ["RANK"]:
        FaultyStream.fault = fault
        build.Stream = FaultyStream
    return enter("distributed", COMMANDS, manual="", argv=argv)
