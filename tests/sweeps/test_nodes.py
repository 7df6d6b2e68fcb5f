"""The nodes of a sweep: who is the first, how they meet, and how each learns that the other is gone."""

import signal
import socket
import threading

import pytest

from distributed.topology import Topology
from pupujepa.errors import UserError
from sweeps.nodes import OtherNodes, lend_node, sweep_topology
from tests.slurm_cluster import free_ports
from tests.sweeps.test_leash import wait_until

STEP = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1", "RAY_AUTH_TOKEN": "a" * 64,
}  # fmt: skip


def test_a_task_knows_its_place():
    """srun's variables tell it; without srun a sweep has one node, whatever the allocation."""
    assert sweep_topology({"SLURM_NTASKS": "8", "RANK": "3"}) == Topology()
    assert (sweep_topology(STEP).rank, sweep_topology(STEP).world_size) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SLURM_STEP_NUM_NODES": "1"}, "one task on each node, but here are 2 on 1 nodes.*--ntasks-per-node=1"),
        ({"RAY_AUTH_TOKEN": ""}, "needs a secret that they share, or anybody could run code"),
    ],
)
def test_what_cannot_work_is_refused(changes, sentence):
    """Before anything is started, on every task."""
    with pytest.raises(UserError, match=sentence):
        sweep_topology(STEP | changes)


def test_the_first_node_tells_where_ray_is_and_sees_a_loss(tmp_path):
    """Those who come early wait; they are told once the driver has written its address."""
    (port,) = free_ports(1)
    address = tmp_path / "address"
    with (
        OtherNodes(Topology(0, 2, 0, ("127.0.0.1", port))) as others,
        socket.create_connection(("127.0.0.1", port), timeout=60) as node,
    ):
        assert others.meet() == "127.0.0.1"
        others.tell(address)
        address.write_text("127.0.0.1:6379")
        others.tell(address)
        assert node.makefile().readline() == "127.0.0.1:6379\n"
        assert not others.lost()
        node.shutdown(socket.SHUT_RDWR)
        wait_until(others.lost)


def test_a_sweep_of_one_node_waits_for_nobody(tmp_path):
    """And loses none."""
    with OtherNodes(Topology()) as others:
        assert others.meet() is None
        others.tell(tmp_path / "address")
        assert not others.lost()


def test_a_node_whose_sweep_never_began_ends_well(tmp_path, monkeypatch):
    """The first task ended with a wrong input, and its exit code is the job's: no Ray was started, none is missed."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def end() -> None:
            door.accept()[0].close()

        first = threading.Thread(target=end)
        first.start()
        topology = Topology(1, 2, 0, ("127.0.0.1", door.getsockname()[1]))
        assert lend_node(topology, out=tmp_path, cpus=1, grace_s=1) == 0
        first.join()
    assert not [*tmp_path.iterdir()]
