"""The nodes of one sweep: a task on each; the first drives it, and the others lend their cores and GPUs to its Ray.

  srun --ntasks-per-node=1 python -m sweeps run ...        what slurm/sweep.sbatch does

Every other task connects to the first one and holds the connection, as a leash holds its pipe: when it ends, whatever
the way, the Ray of that node ends with all that it runs; and when a node is lost the sweep ends, to be continued. Who
may join Ray is decided by the token of the job. Nothing secret goes over these connections.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from distributed.topology import Topology, discover
from distributed.watchdog import EXIT_CODE_LOST
from pupujepa.errors import UserError
from sweeps.driver import OBJECT_STORE_BYTES, TOKEN_NAME, private_directory, ray_environment
from sweeps.leash import Leash
from sweeps.trial import ROOT

# nodes of a job start together, but the first import on one may take minutes
MEET_S = 300.0
POLL_S = 0.2

logger = logging.getLogger(__name__)


def sweep_topology(environ: Mapping[str, str]) -> Topology:
    """Returns which of the sweep's tasks this is; outside of srun it is the only one.

    Raises:
        UserError: several tasks on a node, whose cores would be counted as often, or no token that the nodes share.
    """
    if "SLURM_STEP_ID" not in environ:
        return Topology()
    topology = discover(environ)
    nodes = environ.get("SLURM_STEP_NUM_NODES", str(topology.world_size))
    if nodes != str(topology.world_size):
        raise UserError(
            f"a sweep has one task on each node, but here are {topology.world_size} on {nodes} nodes, and the cores of "
            f"a node would be counted several times; start it with --ntasks-per-node=1"
        )
    if topology.world_size > 1 and not environ.get(TOKEN_NAME):
        raise UserError(
            f"a sweep on {nodes} nodes needs a secret that they share, or anybody could run code on them; start it "
            f"with slurm/sweep.sbatch, or export {TOKEN_NAME} with 64 random hex digits before srun"
        )
    return topology


class OtherNodes:
    """The other tasks of the sweep, as the first one sees them; leaving the context ends their part."""

    def __init__(self, topology: Topology):
        self._count = topology.world_size - 1
        self._connections: list[socket.socket] = []
        self._address = ""
        if topology.master is not None:
            # from now on, so that who is early waits
            self._door = socket.create_server(("", topology.master[1]), backlog=self._count)

    def __enter__(self) -> "OtherNodes":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._count:
            self._door.close()
        for connection in self._connections:
            connection.close()

    def meet(self) -> str | None:
        """Waits for all of them; returns the address under which they reach this node, None when it is the only one.

        Raises:
            UserError: some did not come within MEET_S.
        """
        deadline = time.monotonic() + MEET_S
        while len(self._connections) < self._count:
            self._door.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._connections.append(self._door.accept()[0])
            except TimeoutError as error:
                raise UserError(
                    f"only {len(self._connections)} of {self._count} other nodes came within {MEET_S:.0f} s, so the "
                    f"sweep did not start; see what their tasks say, and whether port {self._door.getsockname()[1]} "
                    f"is open between the nodes"
                ) from error
        return self._connections[0].getsockname()[0] if self._connections else None

    def tell(self, address_file: Path) -> None:
        """Tells them where Ray is, once the driver has written it."""
        if not self._connections or self._address or not address_file.exists():
            return
        self._address = address_file.read_text()
        for connection in self._connections:
            with suppress(ConnectionError):  # `lost` sees it too
                connection.sendall(f"{self._address}\n".encode())

    def lost(self) -> bool:
        """Whether one of them has ended; they say nothing as long as they live."""
        return bool(self._connections) and bool(select.select(self._connections, [], [], 0)[0])


def lend_node(topology: Topology, *, out: Path, cpus: int, grace_s: float) -> int:
    """Gives this node to the sweep until that is over; returns the exit code.

    Args:
        out: the sweep's directory, where Ray's own words go.
        grace_s: for trials to save when the sweep ends before them.
    """
    with _connect(topology) as connection:
        # a scheduler's SIGTERM goes to all tasks; the first one ends the sweep in order, and this one with it
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        address = _line(connection)
        if not address:
            return 0
        ray_dir = private_directory()
        leash = Leash(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"),
                *(f"--node-ip-address={connection.getsockname()[0]}", f"--num-cpus={cpus}", f"--temp-dir={ray_dir}"),
                f"--object-store-memory={OBJECT_STORE_BYTES}",
            ],
            env=ray_environment(os.environ, root=ROOT, token=os.environ[TOKEN_NAME]),
            cwd=ROOT,
            log=out / f"node-{topology.rank}.log",
            remove=ray_dir,
            grace_s=grace_s,
            linger_s=grace_s + 1,  # its trials have leashes of their own
        )
        try:
            while leash.poll() is None and not select.select([connection], [], [], POLL_S)[0]:
                pass
            ended_itself = leash.poll() is not None
        finally:
            leash.end()
    if not ended_itself:
        return 0
    logger.error("Ray has ended on %s, so the sweep cannot go on there; see %s", socket.gethostname(), out)
    return EXIT_CODE_LOST


def _connect(topology: Topology) -> socket.socket:
    assert topology.master is not None
    deadline = time.monotonic() + MEET_S
    while True:
        try:
            connection = socket.create_connection(topology.master, timeout=MEET_S)
        except OSError as error:
            if time.monotonic() > deadline:
                host, port = topology.master
                raise UserError(
                    f"the first node of the sweep did not answer at {host}:{port} for {MEET_S:.0f} s ({error}), so "
                    f"this one is of no use to it; see what its task says, and whether the port is open between nodes"
                ) from error
            time.sleep(POLL_S)
        else:
            connection.settimeout(None)
            return connection


def _line(connection: socket.socket) -> str:
    """What the first node says; "" when it has ended without a word."""
    try:
        return connection.makefile().readline().strip()
    except ConnectionError:
        return ""
