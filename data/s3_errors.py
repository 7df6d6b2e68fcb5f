"""What the S3 clients raise, sorted by what it means: most libraries below s3fs have errors of their own."""

from collections.abc import Iterator

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# answers that come with a 4xx status although the same request may well succeed when it is sent again
TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"})


class ShortBodyError(OSError):
    """Fewer bytes came than the store announced."""


def client_errors() -> tuple[type[Exception], ...]:
    """Returns what s3fs raises for a request that failed, for whatever reason."""
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError, ValueError, *passing_errors())


def passing_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of connection and body that may not come again; an OSError of a local disk is none of them."""
    from aiohttp import ClientError as BodyError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from fsspec.exceptions import FSTimeoutError

    connection = (boto.HTTPClientError, boto.ConnectionError, ConnectionError, TimeoutError, FSTimeoutError)
    body = (boto.IncompleteReadError, boto.ChecksumError, boto.FlexibleChecksumError, ResponseParserError, BodyError)
    return (*connection, *body, ShortBodyError)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes; s3fs translates the client's errors and keeps the original as the cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
