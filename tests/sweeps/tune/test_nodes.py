"""The nodes of a sweep: how they meet, and how each learns that the other is gone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pupujepa.errors import UserError
from pupujepa.front_door import enter
from sweeps.__main__ import COMMANDS
from sweeps.tune import driver
from sweeps.tune.driver import MissingNodeError, wait_for_nodes, watch_nodes
from sweeps.tune.nodes import Head, head_of
from tests.slurm_cluster import free_ports

ROOT = Path(__file__).parents[3]
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
NODES = {"PUPUJEPA_HEAD": "10.0.0.1:20007", "PUPUJEPA_NODES": "2", "RAY_AUTH_TOKEN": "a" * 64}


def test_a_task_knows_its_place():
    """The job's script tells it; without that a sweep has one node, whatever the allocation."""
    assert head_of({"SLURM_NTASKS": "8", "RANK": "3"}) is None
    assert head_of(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert head_of(STEP | NODES) == Head("10.0.0.1", 20007, 2)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (STEP, "srun started 2 tasks, and each would run the whole sweep; use slurm/sweep.sbatch"),
        (NODES | {"RAY_AUTH_TOKEN": ""}, "PUPUJEPA_HEAD is set without RAY_AUTH_TOKEN, so anybody could run code"),
    ],
)
def test_what_cannot_work_is_refused(environ, sentence):
    """Before anything is started, on every task."""
    with pytest.raises(UserError, match=sentence):
        head_of(environ)


def nodes(*alive: bool) -> list[dict]:
    """What Ray says about its nodes."""
    return [
        {"NodeID": str(number), "NodeManagerHostname": f"n{number}", "Alive": here}
        for number, here in enumerate(alive, 1)
    ]


def test_the_first_node_waits_for_the_others():
    """Until as many live as the job has; a dead one does not count, and a sweep of one node waits for nobody."""
    seen = iter([nodes(True), nodes(True, False), nodes(True, False, True)])
    wait_for_nodes(2, lambda: next(seen), patience_s=300)
    assert not [*seen]
    wait_for_nodes(1, lambda: nodes(True), patience_s=0)


def test_a_missing_node_is_named_by_those_that_came():
    """The sweep does not start."""
    with pytest.raises(MissingNodeError, match=r"only 2 of 3 nodes joined within 0 s \(n1, n3\), so the sweep"):
        wait_for_nodes(3, lambda: nodes(True, False, True), patience_s=0)


def test_a_lost_node_stops_the_driver(monkeypatch):
    """As SIGTERM does, and it is known why; also when the node has come back, as its trials are gone."""
    lost, over = threading.Event(), threading.Event()
    seen = iter([nodes(True, True), nodes(True, True), nodes(True, False, True)])
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    watch_nodes(lambda: next(seen), lost, over)
    assert lost.is_set()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_sweep_that_ends_loses_no_node():
    """Nodes leave with it."""
    lost, over = threading.Event(), threading.Event()
    over.set()
    watch_nodes(lambda: nodes(True), lost, over)
    assert not lost.is_set()


def test_a_node_whose_sweep_never_began_ends_well(tmp_path):
    """The first task ended with a wrong input, and its exit code is the job's: no Ray was started, none is missed."""
    (port,) = free_ports(1)
    words = ["sweep.yaml", "--shards", "s", "--corpus", "c", "--out", str(tmp_path / "out"), "--lend"]
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "run", *words],
        check=False,
        cwd=ROOT,
        env=os.environ | NODES | {"PUPUJEPA_HEAD": f"127.0.0.1:{port}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_node_lends_itself_to_a_sweep_it_knows(capsys):
    """Without the job's script there is none."""
    words = ["run", "sweep.yaml", "--shards", "s", "--corpus", "c", "--lend"]
    assert enter("sweeps", COMMANDS, manual="", argv=words) == 2
    assert "--lend joins the sweep at PUPUJEPA_HEAD, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(MissingNodeError("no n2"), 86), (UserError("no room"), 2)])
def test_the_driver_says_why_it_did_not_start(capsys, monkeypatch, error, code):
    """In one sentence; a node that did not come may come to the next start of the job."""

    def fail(plan, args, lost):
        raise error

    monkeypatch.setattr(driver, "_run", fail)
    monkeypatch.setattr(driver, "read_plan", lambda out: None)
    assert driver.main(["out", "--ray-dir", "r", "--cpus", "1"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"
