"""A sweep on a Ray of two nodes, of which the one that runs a trial is lost; a program of its own.

  RAY_TMPDIR=DIR python two_nodes.py OUT FLAG      runs the plan in OUT; a node goes once one trial has finished

Both nodes are raylets of this machine, beside a head without cores, and have two cores and a GPU in name. The one that
goes runs the trial that would go on for long. FLAG is made at that moment, so that the stand-in behaves from then on.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from sweeps.plan.plan import read_plan
from sweeps.tune.tune import fit
from tests.sweeps.test_run import ray_worker_of

NODE = {"include_dashboard": False, "object_store_memory": 80 * 2**20}


def main(out: Path, flag: Path) -> None:
    """Runs the sweep to its end."""
    # the head looks often, or it would take a lost node for a slow one for half a minute
    health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "_system_config": health})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=1, **NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        threading.Thread(target=lose_a_node, args=(out, flag), daemon=True).start()
        fit(read_plan(out), out)
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose_a_node(out: Path, flag: Path) -> None:
    """Kills the raylet under the long trial, once the other trial has finished."""
    while not (statuses(out) == ["finished", "running"] and [*out.glob("trials/*/pids")]):
        time.sleep(0.05)
    [pids] = out.glob("trials/*/pids")
    worker = ray_worker_of(int(pids.read_text().split()[0]))
    flag.touch()
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)


def statuses(out: Path) -> list[str]:
    """How the trials that have begun are, sorted."""
    return sorted(json.loads(path.read_text())["status"] for path in out.glob("trials/*/trial.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
