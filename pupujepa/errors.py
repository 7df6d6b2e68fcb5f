"""The one error that a front door turns into a sentence: something that the user can put right."""

from collections.abc import Collection


class UserError(ValueError):
    """A wrong input. The message names the thing, what follows from it, and the remedy."""


def require_known(name: str, value: str, known: Collection[str]) -> None:
    """Raises UserError unless `value` is one of `known`; the message offers them in their order."""
    if value not in known:
        raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
