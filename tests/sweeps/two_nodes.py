"""A sweep on a Ray of two nodes, of which the one that runs the trial is lost; a program of its own.

  RAY_TMPDIR=DIR python two_nodes.py OUT FLAG      runs the plan in OUT; the node goes once a trial's trainer has begun

Both are raylets of this machine. The second has the only cores and a GPU in name; when it is killed, a third one comes.
FLAG is made at that moment, so that the stand-in behaves from then on.
"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from sweeps.plan import read_plan
from sweeps.tuning import fit

STORE_BYTES = 80 * 2**20
NODE = {"include_dashboard": False, "object_store_memory": STORE_BYTES}


def main(out: Path, flag: Path) -> None:
    """Runs the sweep to its end."""
    # the head looks often, or it would take a lost node for a slow one for half a minute
    health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = NODE | {"num_cpus": 0, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        doomed = cluster.add_node(num_cpus=2, num_gpus=1, **NODE)
        ray.init(address=cluster.address, log_to_driver=False)

        def lose_the_node() -> None:
            while not [*out.glob("trials/*/pids")]:
                time.sleep(0.05)
            flag.touch()
            cluster.remove_node(doomed, allow_graceful=False)
            cluster.add_node(num_cpus=2, num_gpus=1, **NODE)

        loss = threading.Thread(target=lose_the_node, daemon=True)
        loss.start()
        fit(read_plan(out), out)
        loss.join()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
