"""The other nodes of a sweep: each lends its cores and GPUs to the first one's Ray.

The script of the job, slurm/sweep.sbatch, holds the standard input of their tasks open. When it ends, whatever the way,
their Ray ends with all that it runs. The driver on the first node waits for all, and ends the sweep when one is lost.

Not by `ray symmetric-run`: it exits with 0 when Ray does not start, ends trials without time to save, and ends every
other Ray of the node too.
"""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pupujepa.errors import UserError
from sweeps.trials import leash
from sweeps.trials.trial import ROOT
from sweeps.tune.driver import OBJECT_STORE_BYTES, TOKEN_NAME, private_directory, ray_environment

HEAD_NAME, NODES_NAME = "PUPUJEPA_HEAD", "PUPUJEPA_NODES"  # IP:PORT, and how many nodes there are
POLL_S = 0.2


@dataclass(frozen=True)
class Head:
    """Where the other nodes reach Ray of the first one, and how many nodes the sweep has."""

    address: str
    port: int
    nodes: int


def head_of(environ: Mapping[str, str]) -> Head | None:
    """Returns what the job's script says about its nodes; None for a sweep of one node.

    Raises:
        UserError: several tasks that know nothing of each other, or nodes without a token that they share.
    """
    head = environ.get(HEAD_NAME)
    if not head:
        tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
        if "SLURM_STEP_ID" in environ and tasks != "1":
            raise UserError(f"srun started {tasks} tasks, and each would run the whole sweep; use slurm/sweep.sbatch")
        return None
    if not environ.get(TOKEN_NAME):
        raise UserError(
            f"{HEAD_NAME} is set and {TOKEN_NAME} is not, so anybody could run code on these nodes; start the sweep "
            f"with slurm/sweep.sbatch"
        )
    address, _, port = head.rpartition(":")
    return Head(address, int(port), int(environ[NODES_NAME]))


def lend_node(head: Head, *, cpus: int, grace_s: float) -> int:
    """Gives this node to the sweep until standard input ends; returns 0 when that is before the sweep began.

    Otherwise this process becomes the leash that Ray is on, which ends like any leash.

    Args:
        grace_s: for trials to save when the sweep ends before them.
    """
    while not (own := _address_towards(head)):
        if leash.owner_is_gone(POLL_S):
            return 0
    ray_dir = private_directory()
    # trials have leashes of their own, which need as long
    patience = ("--grace", str(grace_s), "--linger", str(grace_s + 1), "--remove", str(ray_dir))
    # a node that Ray finds too slow to join tries again
    again = ("sh", "-c", 'until "$@"; do sleep 1; done', "sh")
    ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={head.address}:{head.port}")
    node = (f"--node-ip-address={own}", f"--num-cpus={cpus}", f"--temp-dir={ray_dir}")
    command = (sys.executable, leash.__file__, *patience, "--", *again, *ray, *node)
    environ = ray_environment(os.environ, root=ROOT, token=os.environ[TOKEN_NAME])
    os.execve(sys.executable, [*command, f"--object-store-memory={OBJECT_STORE_BYTES}"], environ)


def _address_towards(head: Head) -> str:
    """Returns the address of this node on the way to Ray of the first one; "" while nobody answers there."""
    try:
        with socket.create_connection((head.address, head.port), timeout=POLL_S) as connection:
            return str(connection.getsockname()[0])
    except OSError:
        return ""
