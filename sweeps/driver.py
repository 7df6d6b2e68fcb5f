"""The process that holds Ray: `python -m sweeps.driver OUT --ray-dir DIR --cpus N` runs the plan in OUT and exits.

`sweeps run` starts it under a leash, with the environment that Ray reads when it is imported (`ray_environment`). With
`--host ADDRESS` other nodes may join its Ray, at what it writes to DIR/address. Exit code: 0 when every trial has its
results, 1 when one failed, 130 when it was stopped before.
"""

import argparse
import logging
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from distributed.run_directory import write_atomically
from sweeps.plan import Plan, read_plan
from sweeps.record import read_record

OBJECT_STORE_BYTES = 80 * 2**20  # trials exchange files, not objects; Ray's default takes 30 % of the memory
EXIT_FAILED, EXIT_STOPPED = 1, 130
TOKEN_NAME, ADDRESS_NAME = "RAY_AUTH_TOKEN", "address"
# Ray's sockets lie below its directory, and Linux cuts socket paths at 107 characters; Ray needs about 70 of them
LONGEST_RAY_DIR = 36


def ray_environment(environ: Mapping[str, str], *, root: Path, token: str | None = None) -> dict[str, str]:
    """Returns the environment of a Ray that nobody else can join and that tells nobody about itself.

    Ray runs any code that a client with its token sends, so a private Ray has a token that was drawn for it alone and
    lives in the environment of its processes. Tune's own console output and log files are off: metrics.jsonl and the
    records hold more.

    Args:
        token: that the nodes of a sweep share; None draws one.
    """
    outer = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
    return outer | {
        "PYTHONPATH": str(root),
        "RAY_AUTH_MODE": "token",
        TOKEN_NAME: token or secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # a worker that loses its node would kill the leash, and with it nobody would end who is on it
        "RAY_kill_child_processes_on_worker_exit": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        # rows between two probes have no quality to compare
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }


def private_directory() -> Path:
    """Returns a new directory for Ray's sockets, in the system's place for such, or in /tmp when that path is long."""
    preferred = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="sweep-", dir=preferred if len(preferred) < LONGEST_RAY_DIR - 16 else "/tmp"))


def main(argv: Sequence[str]) -> int:
    """Runs the plan of a sweep directory on a Ray of its own; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ray-dir", required=True, help="where Ray keeps sockets and logs; a short path")
    parser.add_argument("--cpus", type=int, required=True, help="cores of this node that the trials share")
    parser.add_argument("--host", help="the address of this node, for others that join")
    args = parser.parse_args(argv)
    plan = read_plan(args.out)
    stopped = _run(plan, args)
    # a search has added to it meanwhile
    return EXIT_STOPPED if stopped else exit_code(read_plan(args.out), args.out)


def exit_code(plan: Plan, out: Path) -> int:
    """Returns 0, or EXIT_FAILED / EXIT_STOPPED when a trial has no results because it failed / was not reached."""
    statuses = {read_record(planned, out).status for planned in plan.trials}
    if statuses & {"crashed", "diverged"}:
        return EXIT_FAILED
    return EXIT_STOPPED if statuses - {"finished", "pruned"} else 0


def _run(plan: Plan, args: argparse.Namespace) -> bool:
    """Starts Ray, fits, stops Ray; returns whether a signal asked for the end."""
    import ray  # here, so that a wrong argument costs no second of Ray's import

    from sweeps.tuning import fit

    ray.init(
        num_cpus=args.cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=args.ray_dir,
        _node_ip_address=args.host,
    )
    write_atomically(Path(args.ray_dir) / ADDRESS_NAME, ray.get_runtime_context().gcs_address)
    stopped: list[int] = []
    # after ray.init, which installs a handler of its own that exits at once
    signal.signal(signal.SIGTERM, lambda number, frame: _stop_tune(stopped, number, frame))
    try:
        fit(plan, args.out)
    except KeyboardInterrupt:
        stopped.append(signal.SIGINT)
    finally:
        ray.shutdown()
    return bool(stopped)


def _stop_tune(stopped: list[int], number: int, frame: FrameType | None) -> None:
    """Does what Ctrl-C does at this moment: Tune saves its state and returns; outside of it, KeyboardInterrupt."""
    stopped.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
