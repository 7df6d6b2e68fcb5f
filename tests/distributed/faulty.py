"""A rank of a training that is struck by a fault, or by none; see rank_server.py, which starts it.

A fault strikes where its rank takes its batch, which is then what the rank had: NaN is in the data, a hang is the
loader's.
"""

import math
import os
import signal
import threading
from dataclasses import replace

from distributed import build
from distributed.__main__ import COMMANDS
from pupujepa.front_door import enter


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
        return replace(batch, offset=batch.offset * math.nan)
    if what == "hang":
        threading.Event().wait()
    # here and now, whatever threads there are
    signal.raise_signal(signal.Signals[what])
    return batch


def main(argv, fault):
    """Trains with the command line `argv`; {"rank", "steps", "what"}, if any, strikes that rank. The exit code."""
    if fault and str(fault["rank"]) == os.environ["RANK"]:
        FaultyStream.fault = fault
        build.Stream = FaultyStream
    return enter("distributed", COMMANDS, manual="", argv=argv)
