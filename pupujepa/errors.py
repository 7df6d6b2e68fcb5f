"""Errors that a user can mend: a front door prints their message without a traceback."""

from collections.abc import Collection
from pathlib import Path

# a process or a machine is lost; the same command continues, so a scheduler may start it again (slurm/requeue.sh)
EXIT_CODE_LOST = 86


class UserError(ValueError):
    """A wrong input; the message gives the condition, the consequence and the remedy.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 2


class UnreadableError(OSError):
    """A file that cannot be read now (rights, disk, too many open files), which does not make it damaged.

    Its arguments are those of OSError: errno, its text and the name of the file.
    """

    exit_code = UserError.exit_code

    def __str__(self) -> str:
        return (
            f"{self.filename} cannot be read now ({self.strerror}, errno {self.errno}), so nothing was changed; make "
            "it readable and run the same command again"
        )


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `known`; the message lists them."""
    if value not in known:
        raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")


def unreadable(path: object, error: OSError) -> UserError:
    """Returns the error for a file that cannot be read now.

    It may be whole, so it is never rejected or replaced.
    """
    return UserError(str(UnreadableError(error.errno, error.strerror, str(path))))


def require_readable(path: Path) -> None:
    """Raises UserError if a file cannot be opened; safetensors would call it missing."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
