"""The one way into a room from the command line: `python -m <room> <command> ...`.

Every room's `__main__` names its commands and the modules behind them; only the module of the chosen command is
imported, so that `--help` answers at once. A `UserError` becomes one sentence and exit code 2. A reader that has seen
enough, as `| head` has, ends a command quietly with exit code 141. Nothing else is caught: a crash keeps its traceback
and never exits 0.
"""

import argparse
import errno
import logging
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

from pupujepa.errors import UserError

ROOMS = ("pupujepa", "data", "distributed", "sweeps")


@dataclass(frozen=True)
class Command:
    """A sub-command: the module that holds `add_arguments(parser)` and `run(args) -> int`, and one line of help."""

    module: str
    help: str


def enter(room: str, commands: Mapping[str, Command], *, manual: str, argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command that `argv` names and returns its exit code.

    Args:
        room: the package whose front door this is.
        commands: by name.
        manual: what the room is for, with examples; shown by `--help` as it is written.
    """
    with quiet_when_unread():
        try:
            args = _parse(room, commands, manual=manual, argv=sys.argv[1:] if argv is None else argv)
            listen_to_own_rooms()
            return args.run(args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the sentence is the product
            return 2


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the process without a traceback when its own output cannot be written.

    A reader that has left, as `| head` does, ends it with the exit code that a shell reports for SIGPIPE, 141. The
    signal itself stays ignored: its default action would also kill a training whose store hangs up. Other broken
    pipes than our output's keep their traceback. Output into a full disk is one sentence and exit code 2.

    Raises:
        SystemExit: standard output or standard error cannot be written.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    try:
        try:
            yield
        except SystemExit:  # --help leaves by it
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _has_lost_its_reader(stream)]
        if not unread:
            raise
        _discard(unread)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno != errno.ENOSPC or _can_write(sys.stdout):  # the full disk is not the one of our output
            raise
        _discard([sys.stdout])
        print("error: standard output goes to a disk that is full; free some of it", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _can_write(stream: TextIO) -> bool:
    """Returns False for a stream on a full disk; writes a line end to find out, as an empty write always succeeds."""
    try:
        stream.flush()
        os.write(stream.fileno(), b"\n")
    except OSError:
        return False
    return True


def _discard(streams: Sequence[TextIO]) -> None:
    """Sends the rest of the streams nowhere: the interpreter would fail again as it flushes them at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _has_lost_its_reader(stream: TextIO) -> bool:
    """Returns True for a pipe or a socket of which the other end is closed."""
    try:
        ends = select.poll()
        ends.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream of no file, or a closed one
        return False
    return bool(ends.poll(0))


def _parse(room: str, commands: Mapping[str, Command], *, manual: str, argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; `run` of the result is the function of the chosen command.

    Raises:
        UserError: a room that is not ours would be imported.
        SystemExit: after help, or after arguments that make no sense.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {room}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if room != "pupujepa":
        require_own_rooms(Path(__file__).parents[1])
    for name, command in commands.items():
        module = import_module(command.module) if name == chosen else None
        subparser = subparsers.add_parser(
            name,
            help=command.help,
            description=module.__doc__ if module else command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(argv)


def listen_to_own_rooms() -> None:
    """Shows what our rooms log from INFO on, others' from WARNING on; a process that has handlers keeps them."""
    logging.basicConfig(format="%(message)s")
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)


def require_own_rooms(root: Path) -> None:
    """Raises UserError when `data`, `distributed` or `sweeps` would be imported from somewhere else than `root`.

    These are also names of other people's packages; importing theirs fails later, far from the cause.
    """
    for room in ROOMS[1:]:
        spec = find_spec(room)
        found = Path(spec.origin).parent if spec and spec.origin else None
        if found != root / room:
            where = found or "nowhere"
            raise UserError(
                f"the package {room!r} is found at {where}, not in this checkout ({root / room}), so the wrong code "
                f"would run; start from the checkout's root, or put it first: PYTHONPATH={root}"
            )
