"""Errors of the S3 clients by meaning; most libraries below s3fs have their own."""

from collections.abc import Iterator
from dataclasses import dataclass

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# answers with a 4xx status that may succeed on retry
TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"})
# expired temporary credentials: their renewal in the profile may be a little late
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
# refused credentials that some stores answer with status 400
_REFUSED_CODES = frozenset(
    {"InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
)


class ShortBodyError(OSError):
    """The body is shorter than the store announced."""


class SlowBodyError(OSError):
    """The body arrives too slowly to ever finish."""


@dataclass(frozen=True)
class Passing:
    """A failure that a retry may mend: its reason, and the remedy if retries fail."""

    reason: str
    remedy: str


def client_errors() -> tuple[type[Exception], ...]:
    """Returns all errors that s3fs raises for a failed request."""
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError, ValueError, *passing_errors())


def passing_errors() -> tuple[type[Exception], ...]:
    """Returns the passing errors of connection and body; an OSError of a local disk is not one."""
    return tuple(kind for kinds, _ in _in_words() for kind in kinds)  # flattened


def reason_of(error: Exception) -> str:
    """Returns a short reason for one of `passing_errors`, with the error's name."""
    words = next(words for kinds, words in _in_words() if isinstance(error, kinds))
    details = f": {error}" if isinstance(error, (ShortBodyError, SlowBodyError)) else ""
    return f"{words} ({type(error).__name__}{details})"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes; s3fs keeps the client's original error as a cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def remedy_of_refusal(status: int, code: str) -> str | None:
    """Returns the remedy for refused credentials; None for any other answer."""
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong, and signatures hold for minutes: set it"
    if status in (401, 403) or code in _REFUSED_CODES:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may use this bucket"
    return None


def _in_words() -> tuple[tuple[tuple[type[Exception], ...], str], ...]:
    """Returns kinds of errors and their meaning, the most special first."""
    from aiohttp import ClientError as BodyError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from fsspec.exceptions import FSTimeoutError

    return (
        ((ShortBodyError,), "the body was cut short"),
        ((SlowBodyError,), "the body came too slowly"),
        ((boto.ChecksumError, boto.FlexibleChecksumError), "the body came damaged"),
        ((boto.ConnectTimeoutError, boto.EndpointConnectionError), "no connection"),
        ((boto.ReadTimeoutError, FSTimeoutError, TimeoutError), "the store fell silent"),
        ((boto.IncompleteReadError, BodyError), "the body was cut short"),
        ((ResponseParserError,), "the answer was cut short"),
        ((boto.HTTPClientError, boto.ConnectionError, ConnectionError), "the connection was lost"),
    )
