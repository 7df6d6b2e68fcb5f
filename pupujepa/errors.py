"""Errors that a user can mend: a front door prints their message without a traceback."""

from collections.abc import Collection

# a process or a machine is lost; the same command continues, so a scheduler may start it again (slurm/requeue.sh)
EXIT_CODE_LOST = 86


class UserError(ValueError):
    """A wrong input; the message gives the condition, the consequence and the remedy.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 2


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `known`; the message lists them."""
    if value not in known:
        raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
