"""`python -m distributed ...` on a rank of an evaluation, except that rank 1 never gets on with its first features."""

import os
import sys
import threading

from distributed.__main__ import COMMANDS
from distributed.marble.features import features
from distributed.processes.process import end_with
from pupujepa.front_door import enter

if __name__ == "__main__":
    if os.environ["SLURM_PROCID"] == "1":
        features._part = lambda *_, **__: threading.Event().wait()
    end_with(lambda: enter("distributed", COMMANDS, manual="", argv=sys.argv[1:]))
