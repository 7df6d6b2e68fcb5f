"""Commands for training and evaluation.

  python -m distributed train --preset demo stream.url=shards/train            one process
  torchrun --nproc-per-node 8 -m distributed train --preset paper model=tiny stream.url=s3://bucket/shards/train
  srun python -m distributed train --preset paper model=tiny stream.url=s3://bucket/shards/train      one task per GPU
  python -m distributed evaluate --encoders runs/demo random_init --data corpora/scores --out runs/demo
  python -m distributed leaderboard runs/demo runs/tiny                         results side by side
  python -m distributed report runs/demo                                        the page of a run
  python -m distributed plan --preset paper model=large --gpus 64               memory, FLOPs and hours before you queue
  python -m distributed doctor                                                  what this machine lacks, with remedies

The same train command, run again, continues from the newest whole checkpoint.
"""

import os
import sys

from distributed.processes.process import die_with_launcher, end_with
from pupujepa.front_door import Command, enter

COMMANDS = {
    "train": Command("distributed.train", "pre-train, or continue a run"),
    "evaluate": Command("distributed.marble.evaluate", "probe frozen encoders on labelled tasks"),
    "leaderboard": Command("distributed.marble.leaderboard", "compare results with each other and with published ones"),
    "report": Command("distributed.report.page", "write the self-contained HTML page of a run"),
    "export": Command("distributed.sessions.export", "write a checkpoint in the released weight format"),
    "checkpoints": Command("distributed.sessions.listing", "list and verify the checkpoints of a run"),
    "doctor": Command("distributed.doctor.command", "check this machine; each problem comes with a remedy"),
    "plan": Command("distributed.plan.plan", "estimate memory, FLOPs and hours of an experiment"),
}

if __name__ == "__main__":
    die_with_launcher(os.environ)
    # DeepSpeed's launcher adds --local_rank for scripts that do not read the environment
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    end_with(lambda: enter("distributed", COMMANDS, manual=__doc__, argv=arguments))
