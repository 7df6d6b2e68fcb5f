"""Ranks of trainings, forked from one process that has imported what they need: most of what a small training takes.

`RankServer` starts that process, this file as a script, and sends it an order as a line of JSON: a list of ranks, each
{"environ", "log", "entry": "module:function", "arguments"}, of one world or of several; see `world`. The answer, a line
too, holds their exit codes. The ranks are processes like any other, each with an environment of its own; what launchers
do is tested with launchers. Ranks die with the server, so that a test that hangs and is given up leaves nobody behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from distributed.processes.process import die_with_launcher
from tests.distributed.launch import TIMEOUT_S, environment
from tests.slurm_cluster import free_ports

# how long a frozen rank is left alone when another has ended: srun's --wait
PATIENCE_S = 2.0


class RankServer:
    """The process that ranks are forked from, as a context manager."""

    def __enter__(self) -> "RankServer":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment() | {"DS_ACCELERATOR": "cpu"},  # read by DeepSpeed when it is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=TIMEOUT_S)
        finally:
            self._process.kill()

    def start(self, ranks: Sequence[dict[str, Any]]) -> list[int]:
        """Starts ranks and returns their exit codes when all have ended; whoever gives up waiting ends them."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(ranks), file=self._process.stdin, flush=True)
        try:
            return json.loads(self._process.stdout.readline())
        except BaseException:
            self._process.kill()
            raise


def world(ranks: int, entry: str, *arguments: Any, logs: Path) -> list[dict[str, Any]]:
    """Returns the orders for the ranks of one process group, with the environment that a launcher gives them.

    Args:
        entry: "module:function" that is called on each rank and returns its exit code.
        arguments: of the function; what JSON can hold.
        logs: folder in which each rank's output is written.
    """
    (port,) = free_ports(1)
    orders = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environ = environment() | {name: str(value) for name, value in place.items()}
        log = str(logs / f"rank-{rank}-of-{ranks}-at-{port}.log")
        orders.append({"environ": environ, "log": log, "entry": entry, "arguments": arguments})
    return orders


def become(rank: dict[str, Any]) -> int:
    """Turns a fork of this process into a rank; returns its exit code."""
    die_with_launcher({"TORCHELASTIC_RUN_ID": "this server"})
    # as on a terminal, even if these tests run where both are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(rank["environ"])
    log = os.open(rank["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module, _, function = rank["entry"].partition(":")
    return getattr(import_module(module), function)(*rank["arguments"])


def exit_codes(pids: Sequence[int]) -> list[int]:
    """Waits for all; a process that is frozen is killed some time after another has ended."""
    codes: dict[int, int] = {}
    first_end_s = 0.0
    while left := [pid for pid in pids if pid not in codes]:
        for pid in left:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                first_end_s = first_end_s or time.monotonic()
            elif first_end_s and time.monotonic() > first_end_s + PATIENCE_S and _is_frozen(pid):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def main() -> int:
    """Serves orders until there are no more; in a fork, is a rank and returns its exit code."""
    import deepspeed  # noqa: F401  all that a rank imports later
    import torch._dynamo  # noqa: F401

    import distributed.train  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        pids = []
        for rank in json.loads(line):
            pids.append(os.fork())
            if not pids[-1]:
                return become(rank)
        sys.stdout.write(json.dumps(exit_codes(pids)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    from distributed.processes.process import end_with

    # a fork inherits threads' objects without the threads, which the ordinary end would trip over
    end_with(main)
