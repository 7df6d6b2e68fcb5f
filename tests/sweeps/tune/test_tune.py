"""Tune's part without a sweep around it: room for a trial, and a node that is lost."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from pupujepa.errors import UserError
from sweeps.plan.compose import plan_sweep
from sweeps.plan.plan import Commands, Launch, Plan, write_plan
from sweeps.plan.sweep_file import read_sweep
from sweeps.tune.driver import ray_environment
from sweeps.tune.tune import require_resources
from tests.processes import wait_until_gone
from tests.sweeps.conftest import PRESET
from tests.sweeps.test_run import launch, phases_of, records

HERE, ROOT = Path(__file__).parents[1], Path(__file__).parents[3]


def test_a_trial_that_no_node_could_hold_is_refused():
    """It would wait for ever: cores of several nodes do not add up, as the ranks of a trial share one."""
    launch = Launch("demo", "shards", "corpus", ("key",), Commands((), ()), cpus=4, gpus=0.5)
    plan = Plan("sweep", "", launch, (), {})
    small, large = {"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}
    require_resources(plan, [{"Alive": True, "Resources": small}, {"Alive": True, "Resources": large}])
    gone = [{"Alive": True, "Resources": small}, {"Alive": False, "Resources": large}]
    with pytest.raises(UserError, match=r"a trial takes 4 cores and 0\.5 GPUs on one node.*\(2 cores, 1 GPUs\)"):
        require_resources(plan, gone)


def test_a_lost_node_costs_the_trial_that_ran_on_it_and_nothing_else(
    write_sweep, shards, corpus, stand_in_commands, tmp_path
):
    """What was finished there stays finished, the orphans are ended, the trial goes on on another node.

    Trials take half a GPU, so two have a place on the only one beside each other; each is told which it is.
    """
    axes = {"ratio": {"key": "masks.ratio", "values": [0.7]}}
    sweep = read_sweep(write_sweep(axes=axes, commands=stand_in_commands))
    commands = Commands(tuple(sweep.commands.train), tuple(sweep.commands.evaluate))
    how = Launch(str(PRESET), str(shards), str(corpus), ("collection",), commands, gpus=0.5, grace_s=1.0)
    out = tmp_path / "out"
    write_plan(plan_sweep(sweep, how, corpus=corpus, name="sweep", session="s"), out)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as ray_dir:
        command = [sys.executable, str(HERE / "two_nodes.py"), str(out), str(tmp_path / "behave")]
        done = launch(command, env=ray_environment(os.environ, root=ROOT) | {"RAY_TMPDIR": ray_dir})
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: r["status"] for name, r in records(out).items()} == {
        "base-seed0": "finished", "ratio=0.7-seed0": "finished",
    }  # fmt: skip
    assert phases_of(out) == {
        "base-seed0": ["train", "evaluate"], "ratio=0.7-seed0": ["train", "train", "evaluate"],
    }  # fmt: skip
    starts = [line.split() for path in out.glob("trials/*/starts") for line in path.read_text().splitlines()]
    assert {gpus for _, _, gpus in starts} == {"0"}
    wait_until_gone(int(pid) for path in out.glob("trials/*/pids") for pid in path.read_text().split())
