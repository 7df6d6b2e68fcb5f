"""Errors that a user can mend: a front door prints their message without a traceback."""

from collections.abc import Collection
from pathlib import Path


class UserError(ValueError):
    """A wrong input; the message gives the condition, the consequence and the remedy."""


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `known`; the message lists them."""
    if value not in known:
        raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")


def unreadable(path: object, error: OSError) -> UserError:
    """Returns the error for a file that cannot be read now.

    It may be whole, so it is never rejected or replaced.
    """
    return UserError(
        f"{path} cannot be read now ({error.strerror}, errno {error.errno}), so nothing was changed; make it readable "
        f"and run the same command again"
    )


def require_readable(path: Path) -> None:
    """Raises UserError if a file cannot be opened; safetensors would call it missing."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
