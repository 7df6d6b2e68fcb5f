"""The other nodes of a sweep: each lends its cores and GPUs to the Ray of the first node.

slurm/sweep.sbatch holds the standard input of their tasks open. When the script ends in any way, their Ray ends with
all its processes. The driver on the first node waits for all nodes, and ends the sweep when one is lost.

`ray symmetric-run` does not serve: it exits with 0 when Ray does not start, gives trials no time to save, and ends
every other Ray of the node.
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

HEAD_NAME, NODES_NAME = "PUPUJEPA_HEAD", "PUPUJEPA_NODES"  # IP:PORT, and the number of nodes
POLL_S = 0.2


@dataclass(frozen=True)
class Head:
    """The address of Ray on the first node, and the number of nodes of the sweep."""

    address: str
    port: int
    nodes: int


def head_of(environ: Mapping[str, str]) -> Head | None:
    """Reads the head node from the job's environment; None for a sweep of one node.

    Raises:
        UserError: several tasks without a head, or nodes without a shared token.
    """
    head = environ.get(HEAD_NAME)
    if not head:
        tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
        if "SLURM_STEP_ID" in environ and tasks != "1":
            raise UserError(f"srun started {tasks} tasks, and each would run the whole sweep; use slurm/sweep.sbatch")
        return None
    if not environ.get(TOKEN_NAME):
        raise UserError(
            f"{HEAD_NAME} is set without {TOKEN_NAME}, so anybody could run code on these nodes; start the sweep "
            f"with slurm/sweep.sbatch"
        )
    address, _, port = head.rpartition(":")
    return Head(address, int(port), int(environ[NODES_NAME]))


def lend_node(head: Head, *, cpus: int, grace_s: float) -> int:
    """Lends this node to the sweep until standard input ends; returns 0 if that is before its start.

    Otherwise this process becomes the leash of Ray.

    Args:
        grace_s: time for trials to save when the sweep ends first.
    """
    while not (own := _address_towards(head)):
        if leash.owner_is_gone(POLL_S):
            return 0
    ray_dir = private_directory()
    # the trials' own leashes need as long
    patience = ("--grace", str(grace_s), "--linger", str(grace_s + 1), "--remove", str(ray_dir))
    # Ray refuses a node that joins too slowly: try again
    again = ("sh", "-c", 'until "$@"; do sleep 1; done', "sh")
    ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={head.address}:{head.port}")
    node = (f"--node-ip-address={own}", f"--num-cpus={cpus}", f"--temp-dir={ray_dir}")
    command = (sys.executable, leash.__file__, *patience, "--", *again, *ray, *node)
    environ = ray_environment(os.environ, root=ROOT, token=os.environ[TOKEN_NAME])
    os.execve(sys.executable, [*command, f"--object-store-memory={OBJECT_STORE_BYTES}"], environ)


def _address_towards(head: Head) -> str:
    """Returns this node's address on the route to the first node's Ray; "" while Ray does not answer."""
    try:
        with socket.create_connection((head.address, head.port), timeout=POLL_S) as connection:
            return str(connection.getsockname()[0])
    except OSError:
        return ""
