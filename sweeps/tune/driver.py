"""The process that holds Ray: `python -m sweeps.tune.driver OUT --ray-dir DIR --cpus N`.

It runs the plan in OUT. `sweeps run` starts it under a leash, with the environment that Ray reads when it is imported
(`ray_environment`). With `--host ADDRESS --nodes N` it first waits for the other nodes. Exit code: 0 when every trial
has its results, 1 when one failed, 130 when it was stopped, 2 when no node can hold a trial, 86 when a node did not
join or was lost.
"""

import argparse
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pupujepa.errors import EXIT_CODE_LOST, UserError
from sweeps.plan.plan import Plan, read_plan
from sweeps.trials.record import read_record

OBJECT_STORE_BYTES = 80 * 2**20  # trials exchange files, not objects; Ray's default takes 30 % of the memory
EXIT_FAILED, EXIT_STOPPED = 1, 130
TOKEN_NAME = "RAY_AUTH_TOKEN"
MEET_S = 300.0  # Ray gives a node 30 s to join, after its import; a slower node tries again
POLL_S = 0.5
# Linux cuts socket paths at 107 characters, of which Ray needs about 70 below its directory
LONGEST_RAY_DIR = 36


class MissingNodeError(UserError):
    """A node of the sweep did not join its Ray."""

    exit_code = EXIT_CODE_LOST


def ray_environment(environ: Mapping[str, str], *, root: Path, token: str | None = None) -> dict[str, str]:
    """Returns the environment of a private Ray, which nobody else can join; it sends no statistics.

    Ray runs any code of a client with its token, so each sweep draws a token, which only its processes see. Tune's
    console output and log files are off: metrics.jsonl and the records hold more.

    Args:
        token: shared by the nodes of a sweep; None draws one.
    """
    outer = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
    return outer | {
        "PYTHONPATH": str(root),
        "RAY_AUTH_MODE": "token",
        TOKEN_NAME: token or secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # a worker that loses its node would kill the leash, which alone ends the trial's processes
        "RAY_kill_child_processes_on_worker_exit": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        # rows between two probes have no quality to compare
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }


def private_directory() -> Path:
    """Returns a new directory for Ray's sockets: temporary folder, or /tmp if its path is too long."""
    preferred = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="sweep-", dir=preferred if len(preferred) < LONGEST_RAY_DIR - 16 else "/tmp"))


def main(argv: Sequence[str]) -> int:
    """Runs the plan of a sweep directory on its own Ray; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ray-dir", required=True, help="directory of Ray's sockets and logs; a short path")
    parser.add_argument("--cpus", type=int, required=True, help="cores of this node that the trials share")
    parser.add_argument("--host", help="address of this node, for the nodes that join")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the sweep, with this one")
    args = parser.parse_args(argv)
    lost = threading.Event()
    try:
        stopped = _run(read_plan(args.out), args, lost)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if lost.is_set():
        return EXIT_CODE_LOST
    # read again: a search adds trials to the plan
    return EXIT_STOPPED if stopped else driver_exit_code(read_plan(args.out), args.out)


def driver_exit_code(plan: Plan, out: Path) -> int:
    """Returns EXIT_FAILED if a trial failed, EXIT_STOPPED if one was not reached, else 0."""
    statuses = {read_record(planned, out).status for planned in plan.trials}
    if statuses & {"crashed", "diverged", "collapsed"}:
        return EXIT_FAILED
    return EXIT_STOPPED if statuses - {"finished", "pruned"} else 0


def wait_for_nodes(count: int, nodes: Callable[[], Sequence[Mapping[str, Any]]], *, patience_s: float) -> None:
    """Waits until `count` nodes of `ray.nodes()` are alive.

    Raises:
        MissingNodeError: some did not join in time.
    """
    deadline = time.monotonic() + patience_s
    while len(there := _alive(nodes())) < count:
        if time.monotonic() > deadline:
            raise MissingNodeError(
                f"only {len(there)} of {count} nodes joined within {patience_s:.0f} s ({', '.join(there.values())}), "
                f"so the sweep did not start; see the log of the other tasks"
            )
        time.sleep(POLL_S)


def watch_nodes(nodes: Callable[[], Sequence[Mapping[str, Any]]], lost: threading.Event, over: threading.Event) -> None:
    """Sets `lost` and stops this process when a node is gone; returns when `over` is set."""
    met = _alive(nodes())
    while not over.wait(POLL_S):
        # Ray gives a node that comes back a new id, so it counts as lost
        if met.keys() - _alive(nodes()):
            lost.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _alive(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the hosts of the living nodes of `ray.nodes()`, by node id."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in nodes if node["Alive"]}


def _run(plan: Plan, args: argparse.Namespace, lost: threading.Event) -> bool:
    """Starts Ray, runs the plan, and stops Ray; returns True if a signal or a lost node ended it."""
    import ray  # here, so that a wrong argument fails before Ray's slow import

    from sweeps.tune.tune import fit

    ray.init(
        num_cpus=args.cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=args.ray_dir,
        _node_ip_address=args.host,
    )
    stopped: list[int] = []
    # after ray.init, because its own handler exits at once
    signal.signal(signal.SIGTERM, lambda number, frame: _stop_tune(stopped, number, frame))
    over = threading.Event()
    watch = threading.Thread(target=watch_nodes, args=(ray.nodes, lost, over))
    try:
        wait_for_nodes(args.nodes, ray.nodes, patience_s=MEET_S)
        if args.nodes > 1:
            watch.start()
        fit(plan, args.out)
    except KeyboardInterrupt:
        stopped.append(signal.SIGINT)
    finally:
        over.set()
        if watch.is_alive():
            watch.join()
        ray.shutdown()
    return bool(stopped)


def _stop_tune(stopped: list[int], number: int, frame: FrameType | None) -> None:
    """Calls the handler of Ctrl-C: Tune saves its state and returns, else it raises KeyboardInterrupt."""
    stopped.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
