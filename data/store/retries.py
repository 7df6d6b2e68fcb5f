"""How long to insist on a store that fails for the moment."""

import random
from dataclasses import dataclass

from pupujepa.errors import UserError


@dataclass(frozen=True)
class RetryPolicy:
    """How long to insist.

    Args:
        deadline_s: no new try is begun later than this after an operation's first failure.
        first_wait_s, max_wait_s: the wait doubles from the first to the greatest; each is shortened by up to half at
            random, so that a thousand clients of one failed server do not come back together.
        connect_timeout_s, read_timeout_s: of the connection, and between two pieces of a body.
        min_upload_bytes_per_s: a write that is slower counts as stalled, `read_timeout_s` later: while a body is being
            sent, or the leave to send it awaited, the client has no time limit of its own.
        min_download_bytes_per_s: so does a read that brings less over `read_timeout_s`: a body that trickles is never
            silent, and would keep a run waiting for days.

    Raises:
        UserError: a limit that is not positive.
    """

    deadline_s: float = 120.0
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    min_upload_bytes_per_s: float = 1e5
    min_download_bytes_per_s: float = 1e5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(
                    f"{name} {value:g} of the store's retries must be positive; leave it out for its default"
                )

    def wait_s(self, failures: int, rng: random.Random) -> float:
        """Returns the wait after the `failures`-th failure (from 1)."""
        # the exponent is bounded because 2.0**1100 overflows
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60)) * rng.uniform(0.5, 1.0)
