"""A build that dies by SIGKILL at an exact moment, without a race with a watcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data.__main__ import COMMANDS
from data.building import build
from data.building import spool as feature_pass
from pupujepa.front_door import enter
from tests.processes import wait_until_gone

ROOT = Path(build.__file__).parents[2]


def run_and_die(moment: str, command: Sequence[str]) -> None:
    """Runs `python -m data` in a process that kills itself, and waits until its workers have ended.

    Args:
        moment: "facts" or "entry" (the second track or the first shard is done), or "manifest" (one of them is
            published, the next is about to be).
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, moment, *command], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_gone([int(pid) for pid in done.stdout.split()])


def _dying_at(function, call: int):
    """Returns the function, wrapped to kill this process at its `call`-th call (from 1)."""
    calls = []

    def dying(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            sys.stdout.write(" ".join(map(str, _descendants(os.getpid()))))
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return dying


def _dying_after(map_unordered, results: int):
    """Returns the function, wrapped to kill this process after that many results."""

    def mapped(*arguments, **options):
        reached = _dying_at(lambda: None, results)
        for result in map_unordered(*arguments, **options):
            reached()
            yield result

    return mapped


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


if __name__ == "__main__":
    match sys.argv[1]:
        case "facts":
            feature_pass.map_unordered = _dying_after(feature_pass.map_unordered, 2)
        case "entry":
            build.map_unordered = _dying_after(build.map_unordered, 1)
        case "manifest":
            build.write_manifest = _dying_at(build.write_manifest, 2)
    sys.exit(enter("data", COMMANDS, manual="", argv=sys.argv[2:]))
