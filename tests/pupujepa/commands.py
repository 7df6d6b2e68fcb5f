"""The library's commands, as a shell would run them."""

from pupujepa.__main__ import COMMANDS
from pupujepa.front_door import enter


def run(*arguments: object) -> int:
    """Runs a command through the front door and returns its exit code."""
    return enter("pupujepa", COMMANDS, manual="", argv=[str(a) for a in arguments])
