"""Processes that a test has killed: they are gone when they run no more.

Their exit codes may lie about for ever: those of orphans are the first process's to collect, and in a container that is
often one that never does.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import psutil

DEADLINE_S = 300.0


def is_running(pid: int) -> bool:
    """Returns whether the process exists and is more than an exit code that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def members(process_group: int) -> list[int]:
    """Returns the running processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # state, parent and process group follow the command's name, which is in parentheses
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == process_group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(pids: Iterable[int]) -> None:
    """Returns when none of the processes runs any more; fails after DEADLINE_S."""
    deadline, left = time.monotonic() + DEADLINE_S, list(pids)
    while left := [pid for pid in left if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def listening(pids: Iterable[int]) -> set[str]:
    """Returns the addresses, HOST:PORT, at which the processes take TCP connections."""
    asked = set(pids)
    sockets = [socket for socket in psutil.net_connections("tcp") if socket.pid in asked and socket.status == "LISTEN"]
    # IPv4 addresses of sockets of IPv6 have a prefix
    return {f"{socket.laddr.ip.removeprefix('::ffff:')}:{socket.laddr.port}" for socket in sockets}
