"""Two ranks make checkpoints together, and write FOLDER/said-<rank>.json; started by rank_server.py."""

import errno
import json
import logging
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from distributed.checkpoints.manifest import CheckpointError
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.topology import discover, process_group

PATIENCE_S = 300


def wait_for(path):
    give_up_at = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < give_up_at, path
        time.sleep(0.01)


def slow_rank(store, folder, said):
    """Rank 1 is not done: nothing is published, however often both ask; then it is, and there is a checkpoint."""

    def write(directory):
        def rest():
            if store.topology.rank == 1:
                wait_for(folder / "go")
            (directory / f"random-rank-{store.topology.rank:05d}.pt").write_text("state")

        return rest

    store.begin(5, write, {"world_size": 2})
    for _ in range(20):
        store.poll()
        assert store.steps() == []
    dist.barrier()
    if store.topology.is_first:
        (folder / "go").touch()
    store.finish(5)
    said["steps"], said["last"] = store.steps(), store.last.step
    said["files"] = sorted(str(path.relative_to(store.last.path)) for path in store.last.path.rglob("*"))


def full_rank(store, folder, said):
    """The disk of rank 1 is full: both ranks stop at the same poll, with the same sentence."""

    def write(directory):
        def rest():
            if store.topology.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

        return rest

    store.begin(10, write, {"world_size": 2})
    try:
        store.poll(wait=True)
    except CheckpointError as error:
        said["error"] = str(error)


def damage_that_one_rank_sees(store, folder, said):
    """Each rank digests a part of the files: what one of them finds makes both take the same older checkpoint."""

    def write(directory):
        (directory / f"random-rank-{store.topology.rank:05d}.pt").write_text("newer state")

    store.save(15, write, {"world_size": 2})
    dist.barrier()
    if store.topology.is_first:
        (store.root / "step-0000015" / "random-rank-00001.pt").write_text("newer stale")
    dist.barrier()
    said["taken"], said["refused"] = store.newest_whole().step, store.refused


def main(folder):
    folder, topology, said = Path(folder), discover(os.environ), {}
    logging.disable(logging.WARNING)
    with process_group(topology, timeout_s=600, device=torch.device("cpu")):
        store = CheckpointStore(folder / "checkpoints", topology, keep=3)
        for case in (slow_rank, full_rank, damage_that_one_rank_sees):
            case(store, folder, said)
    (folder / f"said-{topology.rank}.json").write_text(json.dumps(said))
    return 0
