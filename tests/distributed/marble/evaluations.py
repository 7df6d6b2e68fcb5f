"""Evaluates on the ranks of one launch, because a launch is slow: torchrun evaluations.py FOLDER DATA ENCODER...

FOLDER/trained has what the front door writes, FOLDER/quick-N the quick checks of the first N ranks, and of all.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from distributed.__main__ import COMMANDS
from distributed.marble.evaluation import Evaluation, evaluate
from distributed.marble.tasks.tasks import select_tasks
from distributed.processes.process import end_process
from distributed.processes.topology import Topology, discover
from pupujepa.front_door import enter


def main(folder: Path, data: str, encoders: list[str]) -> int:
    topology = discover(os.environ)
    words = [
        "evaluate",
        "--precision",
        "fp32",
        "--encoders",
        *encoders,
        "--data",
        data,
        "--out",
        str(folder / "trained"),
    ]
    if code := enter("distributed", COMMANDS, manual="", argv=words):
        return code
    for ranks in range(2, topology.world_size + 1):
        if topology.rank < ranks:
            check(folder, Path(data), encoders, Topology(topology.rank, ranks, topology.rank))
    return 0


def check(folder: Path, data: Path, encoders: list[str], topology: Topology) -> None:
    ranks = topology.world_size
    # the launcher's own store has room for one meeting
    dist.init_process_group("gloo", f"file://{folder}/meeting-{ranks}", rank=topology.rank, world_size=ranks)
    out, cache = folder / f"quick-{ranks}", folder / "features"
    quick = Evaluation(tuple(encoders), select_tasks(["all"]), data=data, out=out, cache=cache, quick=True)
    evaluate(quick, topology, device=torch.device("cpu"))
    dist.destroy_process_group()


if __name__ == "__main__":
    end_process(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
