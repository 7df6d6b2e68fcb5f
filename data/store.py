"""Bytes from and to plain paths, `file://` and `s3://`: the one module that speaks to object stores and that retries.

Objects are read whole: the clients check a whole body against the store's checksum, but return wrong bytes of a ranged
read without a word, and no client retries once a body has begun. So every operation here runs in one loop with a
deadline, on named transient errors; what waiting cannot mend (no bucket, no key, refused credentials, no server) raises
at once, in one sentence. Credentials and endpoint come from the standard environment or profile, are read by the client
library alone, and never reach a log, a message or a pickled store.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from data.files import LocalStore, Location, MissingObjectError, Store, StoreError, atomic_file

__all__ = [
    "Location",
    "MissingObjectError",
    "RetryPolicy",
    "S3Store",
    "Store",
    "StoreError",
    "atomic_file",
    "open_store",
]

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# answers that come with a 4xx status although the same request may well succeed when it is sent again
_TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"})


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
    """

    deadline_s: float = 120.0
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    min_upload_bytes_per_s: float = 1e5

    def wait_s(self, failures: int, rng: random.Random) -> float:
        """Returns the wait after the `failures`-th failure (from 1)."""
        # the exponent is bounded because 2.0**1100 overflows
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60)) * rng.uniform(0.5, 1.0)


def open_store(
    url: Location,
    *,
    policy: RetryPolicy = RetryPolicy(),
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Store:
    """Returns the store at `url`: a plain path, `file://` or `s3://bucket/prefix`. Connects to nothing yet.

    Args:
        rng: draws the jitter; by default one per process, seeded with its id.
        clock, sleep: of the waits between tries.

    Raises:
        StoreError: unknown scheme, or no bucket.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", url)
    if scheme is None:
        return LocalStore(url, root=Path(url))
    parts = urlsplit(url)
    if scheme.group() == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(url, root=Path(unquote(parts.path)))
    if scheme.group() != "s3":
        raise StoreError(f"{url} cannot be opened: {scheme.group()}:// is not known; use a path, file:// or s3://")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{url} names no bucket; write it as s3://bucket/prefix")
    return S3Store(url, bucket=bucket, prefix=prefix.strip("/"), policy=policy, rng=rng, clock=clock, sleep=sleep)


class S3Store(Store):
    """A prefix of a bucket, through s3fs. Clients are made on first use, one per process; the store can be pickled."""

    def __init__(
        self,
        url: Location,
        *,
        bucket: str,
        prefix: str,
        policy: RetryPolicy = RetryPolicy(),
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        super().__init__(url)
        self.bucket, self.prefix, self.policy = bucket, prefix, policy
        self.reached = False  # whether a server ever answered: only then can "no connection" be a passing thing
        self._rng, self._clock, self._sleep = rng, clock, sleep
        self._clients: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": {}}

    def read(self, path: str = "") -> bytes:
        """Returns the whole object, checked against the store's checksum where it has one."""

        def get() -> bytes:
            return self._client().cat_file(self._full(path))

        return self._insist("read", path, get)

    def read_range(self, path: str, offset: int, *, length: int) -> bytes:
        """Returns `length` bytes from `offset`, unchecked but for their number."""

        def get() -> bytes:
            content = self._client().cat_file(self._full(path), start=offset, end=offset + length)
            if len(content) != length:
                raise _ShortBodyError(f"{len(content)} of {length} bytes came")
            return content

        return self._insist("read", path, get) if length else b""

    def download(self, path: str, local_path: Path | str) -> int:
        """Streams the object into a file; its length is compared with the one the store announces."""

        def get() -> int:
            with atomic_file(Path(local_path)) as temporary:
                progress = _Progress()
                self._client().get_file(self._full(path), str(temporary), callback=progress)
                size = temporary.stat().st_size
                if progress.size is not None and progress.size != size:
                    raise _ShortBodyError(f"{size} of {progress.size} bytes came")
                return size

        return self._insist("download", path, get)

    def write(self, path: str, content: bytes) -> None:
        """Puts the object."""
        limit_s = self._upload_limit_s(len(content))
        self._insist("write", path, lambda: self._client().pipe_file(self._full(path), content, timeout=limit_s))

    def upload(self, local_path: Path | str, path: str) -> None:
        """Puts a file, in parts when it is large."""
        source, limit_s = str(local_path), self._upload_limit_s(Path(local_path).stat().st_size)
        self._insist("write", path, lambda: self._client().put_file(source, self._full(path), timeout=limit_s))

    def exists(self, path: str = "") -> bool:
        """Whether there is such an object."""
        try:
            self.size(path)
        except MissingObjectError:
            return False
        return True

    def size(self, path: str = "") -> int:
        """Returns the object's length."""
        request = {"Bucket": self.bucket, "Key": self._key(path)}
        return self._insist("read", path, lambda: self._client().call_s3("head_object", **request))["ContentLength"]

    def list(self, prefix: str = "") -> list[str]:
        """Returns the objects below `url` whose path begins with `prefix`."""
        start = f"{self.prefix}/" if self.prefix else ""
        request, names = {"Bucket": self.bucket, "Prefix": start + prefix}, []
        while True:
            page = self._insist("list", prefix, lambda: self._client().call_s3("list_objects_v2", **request))
            names += [entry["Key"].removeprefix(start) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(names)
            request["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, path: str) -> None:
        """Deletes the object."""
        request = {"Bucket": self.bucket, "Key": self._key(path)}
        self._insist("remove", path, lambda: self._client().call_s3("delete_object", **request))

    def _upload_limit_s(self, size_bytes: int) -> float:
        return self.policy.read_timeout_s + size_bytes / self.policy.min_upload_bytes_per_s

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _full(self, path: str) -> str:
        return f"{self.bucket}/{self._key(path)}"

    def _client(self) -> Any:
        """Returns this process's client: its sockets and its thread would not survive a fork."""
        if os.getpid() not in self._clients:
            from s3fs import S3FileSystem

            client = S3FileSystem(
                config_kwargs={
                    "connect_timeout": self.policy.connect_timeout_s,
                    "read_timeout": self.policy.read_timeout_s,
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                },
                max_concurrency=1,  # more would split a read into ranges, which nobody checks
                use_listings_cache=False,
                skip_instance_cache=True,
            )
            client.retries = 1  # the loop below is the only one
            self._clients = {os.getpid(): client}
        return self._clients[os.getpid()]

    def _insist(self, action: str, path: str, operation: Callable[[], Result]) -> Result:
        """Runs `operation` until it succeeds, fails for good, or the policy's deadline is over."""
        failures, give_up_at = 0, float("inf")
        while True:
            try:
                result = operation()
                self.reached = True
                return result
            except _client_errors() as error:
                reason = self._judge(error, path)
                failures += 1
                if failures == 1:
                    give_up_at = self._clock() + self.policy.deadline_s
                wait_s = self.policy.wait_s(failures, self._jitter())
                if self._clock() + wait_s > give_up_at:
                    raise StoreError(
                        f"cannot {action} {self.locate(path)}: {failures} tries in {self.policy.deadline_s:g} s failed,"
                        f" the last with {reason}; see whether the store at {self._host()} is up, then run again"
                    ) from error
                self.retries += 1
                _LOG.warning("%s %s: %s; try %d in %.1f s", action, self.locate(path), reason, failures + 1, wait_s)
                self._sleep(wait_s)

    def _judge(self, error: Exception, path: str) -> str:
        """Returns the reason in a few words when another try may help; otherwise raises what to tell the user."""
        from botocore import exceptions as boto

        response = next((e.response for e in _chain(error) if isinstance(e, boto.ClientError)), None)
        if response is not None:
            self.reached = True
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", status))
            if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
                return f"{status} {code}"
            raise self._refusal(status, code, path) from error
        if any(isinstance(e, (boto.NoCredentialsError, boto.PartialCredentialsError)) for e in _chain(error)):
            raise StoreError(
                f"{self.locate(path)}: no credentials were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        if isinstance(error, (boto.ParamValidationError, boto.ProfileNotFound, ValueError)):
            raise StoreError(f"{self.locate(path)} cannot be requested: {' '.join(str(error).split())}") from error
        if isinstance(error, boto.ConnectionError) and not self.reached:
            raise StoreError(
                f"{self.locate(path)}: no S3 server answers at {self._host()}; start it, or correct AWS_ENDPOINT_URL"
            ) from error
        if isinstance(error, _passing_errors()):
            return type(error).__name__
        raise error

    def _refusal(self, status: int, code: str, path: str) -> StoreError:
        """Returns the error for an answer that another try would get again."""
        location, host = self.locate(path), self._host()
        if code == "NoSuchBucket" or (status == 404 and not self._has_bucket()):
            return StoreError(
                f"{location}: bucket {self.bucket!r} does not exist at {host}; create it, or correct the url or "
                "AWS_ENDPOINT_URL"
            )
        if status == 404:
            return MissingObjectError(f"{location} does not exist at {host}; correct the url or restore the object")
        if status in (401, 403):
            return StoreError(
                f"{location}: {host} refuses these credentials ({status} {code}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY to keys that may use this bucket"
            )
        return StoreError(f"{location}: {host} refuses the request ({status} {code}); correct the url or the endpoint")

    def _has_bucket(self) -> bool:
        """Whether the bucket exists, as far as one question can tell."""
        from botocore.exceptions import ClientError

        try:
            self._client().call_s3("head_bucket", Bucket=self.bucket)
        except _client_errors() as error:
            answer: dict[str, Any] = next((e.response for e in _chain(error) if isinstance(e, ClientError)), {})
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404
        return True

    def _host(self) -> str:
        """Returns host:port of the endpoint, without what else its url may hold."""
        meta = getattr(getattr(self._client(), "_s3", None), "meta", None)
        parts = urlsplit(meta.endpoint_url if meta else "")
        return f"{parts.hostname}:{parts.port}" if parts.port else (parts.hostname or "the endpoint")

    def _jitter(self) -> random.Random:
        if self._rng is None:
            self._rng = random.Random(os.getpid())
        return self._rng


class _ShortBodyError(OSError):
    """Fewer bytes came than the store announced."""


class _Progress:
    """What s3fs tells while it copies, reduced to the announced length; duck-typed `fsspec.callbacks.Callback`."""

    size: int | None = None

    def set_size(self, size: int | None) -> None:
        self.size = size

    def relative_update(self, increment: int = 1) -> None:
        pass


def _client_errors() -> tuple[type[Exception], ...]:
    """Returns what s3fs raises for a request that failed, for whatever reason."""
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError, ValueError, *_passing_errors())


def _passing_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of connection and body that may not come again; an OSError of a local disk is none of them."""
    from aiohttp import ClientError as BodyError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from fsspec.exceptions import FSTimeoutError

    connection = (boto.HTTPClientError, boto.ConnectionError, ConnectionError, TimeoutError, FSTimeoutError)
    body = (boto.IncompleteReadError, boto.ChecksumError, boto.FlexibleChecksumError, ResponseParserError, BodyError)
    return (*connection, *body, _ShortBodyError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and its causes; s3fs translates the client's errors and keeps the original as the cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
