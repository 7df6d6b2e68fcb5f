"""A leash ends a command and its descendants with its owner: `python leash.py -- COMMAND ...`.

Killing a process group is not enough to end a training run: torchrun puts each rank in its own session, and a killed
supervisor kills nothing. So the leash is a process between owner and command. Only the owner holds the other end of
its standard input: when the owner dies in any way, this pipe ends, and the leash ends the command. The leash is also
the subreaper of its descendants (Linux), so none escapes by a new session or a lost parent. It imports little beyond
the standard library, to start in a few hundredths of a second.

The command alone gets SIGTERM first (a trainer that saves still needs its data workers) and `--grace` seconds to leave.
Then its remaining descendants get SIGTERM and `--linger` seconds, then SIGKILL. The exit code is the command's
(128 + signal if it was killed).
"""

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # this file runs as a script, so Python would not find the rooms
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pupujepa.orphans import adopt_orphans, die_with_parent

POLL_S = 0.1


class Leash:
    """The owner's end of a leash: starts `argv`, and ends it with all its descendants.

    Args:
        env: the whole environment of the command.
        log: file to which the command's output is appended; None keeps the owner's output.
        remove: directory that the leash removes in the end.
        grace_s: between SIGTERM and SIGKILL.
        linger_s: the same for the remaining descendants; grace_s by default.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path | None = None,
        remove: Path | None = None,
        grace_s: float = 10.0,
        linger_s: float | None = None,
    ):
        linger_s = grace_s if linger_s is None else linger_s
        options = ["--grace", str(grace_s), "--linger", str(linger_s), *(["--remove", str(remove)] if remove else [])]
        self._patience_s = grace_s + linger_s + 120
        read_end, write_end = os.pipe()  # both are close-on-exec, so no other child holds the owner's end
        self._write_end: int | None = write_end
        output = log.open("ab") if log else None
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), *options, "--", *argv],
                stdin=read_end,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=env,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is the owner's to handle
            )
        finally:
            os.close(read_end)
            if output:
                output.close()

    def poll(self) -> int | None:
        """Returns the exit code of the command; None while it runs."""
        return self._process.poll()

    def end(self) -> int:
        """Ends the command if it still runs; returns its exit code once no descendant is left."""
        if self._write_end is not None:
            os.close(self._write_end)
            self._write_end = None
        return self._process.wait(timeout=self._patience_s)


def main(argv: Sequence[str]) -> int:
    """Runs the command of `argv` until it or the owner ends; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--linger", type=float, default=10.0, help="the same for the command's descendants")
    parser.add_argument("--remove", help="a directory to remove in the end")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, frame: asked.append(received))
    adopt_orphans()
    child = subprocess.Popen(
        args.command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # the command gets SIGTERM if the leash is killed
        preexec_fn=partial(die_with_parent, signal.SIGTERM, parent=os.getpid()),  # noqa: PLW1509 - one thread
    )
    while child.poll() is None and not asked and not owner_is_gone(POLL_S):
        pass
    if child.poll() is None:
        _terminate(child, args.grace)
    _end_descendants(args.linger)
    if args.remove:
        shutil.rmtree(args.remove, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def descendants(ancestor: int) -> list[int]:
    """Returns the living processes under `ancestor`, without zombies; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the command's name is in parentheses and may hold spaces; state and parent follow the last one
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = [], [ancestor]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def owner_is_gone(wait_s: float) -> bool:
    """Waits up to `wait_s` seconds for standard input to end; returns True if it did."""
    return bool(select.select([0], [], [], wait_s)[0])


def _terminate(child: subprocess.Popen, grace_s: float) -> None:
    """Sends SIGTERM to the command and waits, then kills its process group."""
    child.terminate()
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _end_descendants(linger_s: float) -> None:
    """Sends SIGTERM to all descendants, then kills until none is left, as one may start others."""
    _signal_each(descendants(os.getpid()), signal.SIGTERM)
    deadline = time.monotonic() + linger_s
    while _has_children():
        if time.monotonic() > deadline:
            _signal_each(descendants(os.getpid()), signal.SIGKILL)
        time.sleep(0.02)


def _has_children() -> bool:
    """Reaps ended children; returns True if any child is left.

    All orphans below the leash are its children, so the kernel knows them. A scan of /proc may miss a process that
    starts during the scan while its parent ends.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _signal_each(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
