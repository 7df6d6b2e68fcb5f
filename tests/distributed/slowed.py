"""The front door of `distributed` for runs that a test interrupts: slow from step SLOW_FROM on; see launch.slowed."""

import os
import sys
import time

from distributed.__main__ import COMMANDS
from distributed.processes.process import die_with_launcher, end_with
from distributed.run import log as telemetry
from pupujepa.front_door import enter

PAUSE_S = 1.0


class SlowLog(telemetry.MetricsLog):
    """The log of a run, which makes rank 0, and with it all ranks, wait after each row."""

    def write(self, row):
        super().write(row)
        if row["step"] >= int(os.environ["SLOW_FROM"]):
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    die_with_launcher(os.environ)
    telemetry.MetricsLog = SlowLog
    end_with(lambda: enter("distributed", COMMANDS, manual="", argv=sys.argv[1:]))
