"""What the S3 clients raise, sorted by what it means: most libraries below s3fs have errors of their own."""

from collections.abc import Iterator
from dataclasses import dataclass

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# answers that come with a 4xx status although the same request may well succeed when it is sent again
TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"})
# temporary credentials that are over: whoever renews them in the profile may be a little late
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
# refusals of the credentials that some stores give with a status of 400
_REFUSED_CODES = frozenset(
    {"InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
)


class ShortBodyError(OSError):
    """Fewer bytes came than the store announced."""


class SlowBodyError(OSError):
    """Bytes come, but too few to ever be done."""


@dataclass(frozen=True)
class Passing:
    """A failure that another try may mend: why, in a few words, and what helps if it does not."""

    reason: str
    remedy: str


def client_errors() -> tuple[type[Exception], ...]:
    """Returns what s3fs raises for a request that failed, for whatever reason."""
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError, ValueError, *passing_errors())


def passing_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of connection and body that may not come again; an OSError of a local disk is none of them."""
    return tuple(kind for kinds, _ in _in_words() for kind in kinds)


def reason_of(error: Exception) -> str:
    """Returns one of `passing_errors` in a few words, with its name for those who look it up."""
    words = next(words for kinds, words in _in_words() if isinstance(error, kinds))
    details = f": {error}" if isinstance(error, (ShortBodyError, SlowBodyError)) else ""
    return f"{words} ({type(error).__name__}{details})"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes; s3fs translates the client's errors and keeps the original as the cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def remedy_of_refusal(status: int, code: str) -> str | None:
    """Returns what to do about an answer that says that these credentials will not do; None for any other answer."""
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong, and signatures hold for minutes: set it"
    if status in (401, 403) or code in _REFUSED_CODES:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may use this bucket"
    return None


def _in_words() -> tuple[tuple[tuple[type[Exception], ...], str], ...]:
    """Returns kinds of errors and what they mean, the more special ones first."""
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
