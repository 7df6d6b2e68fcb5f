"""Command line of all rooms: `python -m <room> <command> ...`.

Each room's `__main__` lists its commands. Only the module of the chosen command is imported, so `--help` is fast. A
`UserError` or `UnreadableError` becomes one sentence and its exit code, Ctrl-C one line and 130. A reader that closes
the pipe, as `| head` does, ends the command quietly with exit code 141. Nothing else is caught: a crash keeps its
traceback and never exits 0. docs/training_faults.md lists all exit codes.
"""

import argparse
import errno
import logging
import math
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from pupujepa.errors import UnreadableError, UserError

ROOMS = ("pupujepa", "data", "distributed", "sweeps")


@dataclass(frozen=True)
class Command:
    """A sub-command: a module with `add_arguments(parser)` and `run(args) -> int`, and one line of help."""

    module: str
    help: str


def enter(room: str, commands: Mapping[str, Command], *, manual: str, argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command that `argv` names and returns its exit code.

    Args:
        room: name of the package.
        commands: by name.
        manual: the room's help text, with examples; `--help` prints it verbatim.
    """
    with quiet_when_unread():
        try:
            args = _parse(room, commands, manual=manual, argv=sys.argv[1:] if argv is None else argv)
            listen_to_own_rooms()
            return args.run(args)
        except (UserError, UnreadableError) as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the sentence is the product
            return error.exit_code


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the process without a traceback when its own output cannot be written.

    A closed pipe ends it with 141, the exit code that a shell reports for SIGPIPE. The signal itself stays ignored: its
    default action would also kill a training run whose store closes a connection. Other broken pipes keep their
    traceback. Output to a full disk gives one sentence and exit code 2. Ctrl-C gives one line and exit code 130.

    Raises:
        SystemExit: standard output or standard error cannot be written, or Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the parent closed it before the start
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    try:
        try:
            yield
        except SystemExit:  # argparse raises it after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, because errors of the interpreter's last flush cannot be caught
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _has_lost_its_reader(stream)]
        if not unread:
            raise
        _discard(unread)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + signal.SIGINT) from None
    except OSError as error:
        if error.errno != errno.ENOSPC or _can_write(sys.stdout):  # another disk is full
            raise
        _discard([sys.stdout])
        print("error: standard output goes to a disk that is full; free some of it", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def drop_lost_output() -> None:
    """Discards text that standard output does not take, for a command that has another product."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard([sys.stdout])


def _can_write(stream: TextIO) -> bool:
    """Returns False for a stream on a full disk."""
    try:
        stream.flush()
        os.write(stream.fileno(), b"\n")  # an empty write would always succeed
    except OSError:
        return False
    return True


def _discard(streams: Sequence[TextIO]) -> None:
    """Redirects streams to the null device; otherwise the interpreter's last flush fails again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _has_lost_its_reader(stream: TextIO) -> bool:
    """Returns True for a pipe or a socket whose other end is closed."""
    try:
        ends = select.poll()
        ends.register(stream.fileno(), 0)  # an empty mask still reports POLLERR and POLLHUP
    except (OSError, ValueError):  # the stream has no file, or is closed
        return False
    return bool(ends.poll(0))


def _parse(room: str, commands: Mapping[str, Command], *, manual: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; `run` of the result is the command's function.

    Raises:
        UserError: a room would be imported from another place.
        SystemExit: after help, or after wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {room}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if room != "pupujepa":
        require_own_rooms(Path(__file__).parents[1])
    for name, command in commands.items():
        module = import_module(command.module) if name == chosen else None  # the others may import torch
        subparser = subparsers.add_parser(
            name,
            help=command.help,
            description=module.__doc__ if module else command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        # float() takes "nan" and "inf", which pass every comparison or none
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                parser.error(f"argument --{name.replace('_', '-')}: {number} is not finite; write a finite number")
    return args


def listen_to_own_rooms() -> None:
    """Shows our rooms' log from INFO on, and other packages' from WARNING on."""
    logging.basicConfig(format="%(message)s")  # does nothing in a process that has handlers
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)


def require_own_rooms(root: Path) -> None:
    """Raises UserError when `data`, `distributed` or `sweeps` would not be imported from `root`.

    Other distributions use these names too; importing theirs fails later, far from the cause.
    """
    for room in ROOMS[1:]:
        spec = find_spec(room)
        found = Path(spec.origin).parent if spec and spec.origin else None
        if found != root / room:
            raise UserError(
                f"the package {room!r} is found at {found or 'nowhere'}, not in this checkout ({root / room}), so the "
                f"wrong code would run; start from the checkout's root, or put it first: PYTHONPATH={root}"
            )
