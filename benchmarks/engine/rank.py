"""One rank of the engine's benchmark: `torchrun -m benchmarks.engine.rank TASK.json` (launch.py)."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import torch

from distributed.engine.engine import prepare_deepspeed
from distributed.processes.process import end_process, keep_freed_memory
from distributed.processes.topology import choose_device, discover, exported, process_group, usable_gpus

TIMEOUT_S = 1800.0


def main(path: Path) -> NoReturn:
    """Runs the task's function on this rank and writes the result of rank 0."""
    task = json.loads(path.read_text())
    torch.set_num_threads(1)
    topology = discover(os.environ)
    device = choose_device(topology, cuda_devices=usable_gpus(os.environ))
    prepare_deepspeed(os.environ, device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # as a training does
        keep_freed_memory(os.environ)
    module, _, function = task["function"].partition(":")
    with exported(os.environ, topology), process_group(topology, timeout_s=TIMEOUT_S, device=device):
        result = getattr(import_module(module), function)(task["settings"], topology, device)
    if topology.is_first:
        path.with_suffix(".result").write_text(json.dumps(result))
    end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
