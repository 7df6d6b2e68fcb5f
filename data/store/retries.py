"""The retry policy for stores with passing failures."""

import random
from dataclasses import dataclass

from pupujepa.errors import UserError


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of retries.

    Args:
        deadline_s: no retry starts later than this after the first failure.
        first_wait_s, max_wait_s: the wait doubles from first to max, less up to half at random, so that a thousand
            clients of one failed server do not return together.
        connect_timeout_s, read_timeout_s: of the connection, and between two pieces of a body.
        min_upload_bytes_per_s: a write may take its size at this rate, plus `read_timeout_s`; the client sets no limit.
        min_download_bytes_per_s: a read fails if it is slower over `read_timeout_s`; a trickling body never times out.

    Raises:
        UserError: a limit is not positive.
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
