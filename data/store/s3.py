"""A prefix of an S3 bucket through s3fs; only this module talks to object stores and retries.

Objects are read whole: clients check a whole body against the store's checksum, but not a ranged read, and no client
retries once a body has begun. So every operation runs in one retry loop with a deadline, for named transient errors.
Lasting errors (no bucket, no key, refused credentials, no server) raise at once. Only the client library reads
credentials and endpoint, from the standard environment or profile; no log, message or pickled store holds them.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data.store.files import ExistingObjectError, Location, MissingObjectError, RetryPolicy, Store, StoreError
from data.store.s3_bodies import BodyProgress, read_body, write_body
from data.store.s3_errors import (
    EXPIRED_CODES,
    TRANSIENT_CODES,
    TRANSIENT_STATUS,
    Passing,
    ShortBodyError,
    causes,
    client_errors,
    passing_errors,
    reason_of,
    remedy_of_refusal,
)
from pupujepa.durable import atomic_file

Result = TypeVar("Result")
_PRECONDITION_FAILED = 412
_LOG = logging.getLogger(__name__)
# hosts that have answered this process or its parent: only for them can "no connection" be a passing failure
_ANSWERED: set[str] = set()


def answered_hosts() -> frozenset[str]:
    """Returns the servers that have answered, for `remember_hosts` in a worker process."""
    return frozenset(_ANSWERED)


def remember_hosts(hosts: Iterable[str]) -> None:
    """Marks servers as having answered: a lost connection to them is retried."""
    _ANSWERED.update(hosts)


class S3Store(Store):
    """A prefix of a bucket, through s3fs; picklable, with one client per process, made on first use."""

    def __init__(
        self,
        url: Location,
        *,
        bucket: str,
        prefix: str,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        super().__init__(url)
        self.bucket, self.prefix, self.policy = bucket, prefix, policy
        self._rng, self._clock, self._sleep = rng, clock, sleep
        self._clients: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": {}}

    def read(self, path: str = "") -> bytes:
        """Returns the whole object, checked against the store's checksum if it has one."""
        return self._insist("read", path, lambda: self._whole(read_body, path))

    def read_range(self, path: str, offset: int, *, length: int) -> bytes:
        """Returns `length` bytes from `offset`; checks only their number."""
        limit_s = self.policy.read_timeout_s + length / self.policy.min_download_bytes_per_s

        def get() -> bytes:
            content = self._client().cat_file(self._full(path), start=offset, end=offset + length, timeout=limit_s)
            if len(content) != length:
                raise ShortBodyError(f"{len(content)} of {length} bytes came")
            return content

        return self._insist("read", path, get) if length else b""

    def download(self, path: str, local_path: Path | str) -> int:
        """Streams the object into a file and checks its length."""

        def get() -> int:
            with atomic_file(Path(local_path)) as temporary:
                return self._whole(write_body, path, temporary)

        return self._insist("download", path, get)

    def write(self, path: str, content: bytes) -> None:
        """Puts the object."""
        limit_s = self._upload_limit_s(len(content))
        self._insist("write", path, lambda: self._client().pipe_file(self._full(path), content, timeout=limit_s))

    def create(self, path: str, content: bytes) -> bool:
        """Puts the object with `If-None-Match: *`; stores without this condition replace an existing one."""
        limit_s, client = self._upload_limit_s(len(content)), self._client
        put = {"mode": "create", "timeout": limit_s}
        try:
            self._insist("write", path, lambda: client().pipe_file(self._full(path), content, **put))
        except ExistingObjectError:
            return False
        return True

    def upload(self, local_path: Path | str, path: str) -> None:
        """Puts a file; a large one in parts."""
        source, limit_s = str(local_path), self._upload_limit_s(Path(local_path).stat().st_size)
        self._insist("write", path, lambda: self._client().put_file(source, self._full(path), timeout=limit_s))

    def exists(self, path: str = "") -> bool:
        """Returns True if the object exists."""
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
        """Returns the sorted paths, relative to `url`, that begin with `prefix`."""
        return sorted(self.versions(prefix))

    def versions(self, prefix: str = "") -> dict[str, str]:
        """Returns the ETag and length of each object."""
        start = f"{self.prefix}/" if self.prefix else ""
        request, versions = {"Bucket": self.bucket, "Prefix": start + prefix}, {}
        while True:
            page = self._insist("list", prefix, lambda: self._client().call_s3("list_objects_v2", **request))
            for entry in page.get("Contents", ()):
                versions[entry["Key"].removeprefix(start)] = f"{entry['ETag']} {entry['Size']}"
            if not page.get("IsTruncated"):
                return dict(sorted(versions.items()))
            request["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, path: str) -> None:
        """Deletes the object."""
        request = {"Bucket": self.bucket, "Key": self._key(path)}
        self._insist("remove", path, lambda: self._client().call_s3("delete_object", **request))

    def time_s(self) -> float | None:
        """Returns the store's clock in seconds since 1970, by the Date of any answer, or None without one."""
        answer = self._insist("reach", "", self._ask_for_bucket)
        date = parsedate_tz(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
        return None if date is None else float(mktime_tz(date))

    def _upload_limit_s(self, size_bytes: int) -> float:
        return self.policy.read_timeout_s + size_bytes / self.policy.min_upload_bytes_per_s

    def _whole(self, take: Callable[..., Any], path: str, *target: Path) -> Any:
        """Runs one of `data.store.s3_bodies` on the client's thread."""
        from fsspec.asyn import sync

        client, policy = self._client(), self.policy
        progress = BodyProgress(self._clock, policy.read_timeout_s, policy.min_download_bytes_per_s)
        return sync(client.loop, take, client, self.bucket, self._key(path), progress, *target)

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _full(self, path: str) -> str:
        return f"{self.bucket}/{self._key(path)}"

    def _client(self) -> Any:
        """Returns the client of this process; its sockets and thread would not survive a fork."""
        client = self._clients.get(os.getpid())
        if client is None:
            from s3fs import S3FileSystem

            client = S3FileSystem(
                config_kwargs={
                    "connect_timeout": self.policy.connect_timeout_s,
                    "read_timeout": self.policy.read_timeout_s,
                    "retries": {"total_max_attempts": 1, "mode": "standard"},  # botocore must not retry
                },
                max_concurrency=1,  # more would split a read into unchecked ranges
                use_listings_cache=False,  # other machines write too
                skip_instance_cache=True,  # s3fs would share one client between stores
            )
            client.retries = 1  # the loop below is the only one
            self._clients = {os.getpid(): client}
        return client

    def _insist(self, action: str, path: str, operation: Callable[[], Result]) -> Result:
        """Runs `operation` until it succeeds, fails for good, or the deadline passes."""
        failures, give_up_at = 0, float("inf")
        while True:
            try:
                result = operation()
                _ANSWERED.add(self._host())
                return result
            except client_errors() as error:
                passing = self._judge(error, path)
                failures += 1
                if failures == 1:
                    give_up_at = self._clock() + self.policy.deadline_s  # the deadline starts at the first failure
                wait_s = self.policy.wait_s(failures, self._jitter())
                if self._clock() + wait_s > give_up_at:  # no point in a wait that ends too late
                    raise StoreError(
                        f"cannot {action} {self.locate(path)}: {failures} tries in {self.policy.deadline_s:g} s failed,"
                        f" the last with {passing.reason}; {passing.remedy}, then run again"
                    ) from error
                self._count_retry()
                again = f"try {failures + 1} in {wait_s:.1f} s"
                _LOG.warning("%s %s: %s; %s", action, self.locate(path), passing.reason, again)
                self._sleep(wait_s)

    def _judge(self, error: Exception, path: str) -> Passing:
        """Returns the reason for a retry, or raises a lasting error as a UserError."""
        from botocore import exceptions as boto

        response = next((e.response for e in causes(error) if isinstance(e, boto.ClientError)), None)
        if response is not None:
            _ANSWERED.add(self._host())
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", status))
            if code in EXPIRED_CODES:
                self._clients = {}  # the next client reads the credential chain again
                return Passing(f"{status} {code}: the credentials have expired", "renew them")
            if status in TRANSIENT_STATUS or code in TRANSIENT_CODES:
                return Passing(f"{status} {code}", self._look_at_the_store())
            raise self._refusal(status, code, path) from error
        if any(isinstance(e, (boto.NoCredentialsError, boto.PartialCredentialsError)) for e in causes(error)):
            raise StoreError(
                f"{self.locate(path)}: no credentials were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        if isinstance(error, (boto.ParamValidationError, boto.ProfileNotFound, ValueError)):
            raise StoreError(f"{self.locate(path)} cannot be requested: {' '.join(str(error).split())}") from error
        if isinstance(error, boto.ConnectionError) and self._host() not in _ANSWERED:
            raise StoreError(
                f"{self.locate(path)}: no S3 server answers at {self._host()}; start it, or correct AWS_ENDPOINT_URL"
            ) from error
        if isinstance(error, passing_errors()):
            return Passing(reason_of(error), self._look_at_the_store())
        raise error

    def _look_at_the_store(self) -> str:
        return f"see whether the store at {self._host()} is up"

    def _refusal(self, status: int, code: str, path: str) -> StoreError:
        """Returns the error for an answer that a retry would get again."""
        location, host = self.locate(path), self._host()
        if code == "NoSuchBucket" or (status == 404 and not self._has_bucket()):
            return StoreError(
                f"{location}: bucket {self.bucket!r} does not exist at {host}; create it, or correct the url or "
                "AWS_ENDPOINT_URL"
            )
        if status == 404:
            return MissingObjectError(f"{location} does not exist at {host}; correct the url or restore the object")
        if status == _PRECONDITION_FAILED:
            return ExistingObjectError(f"{location} exists at {host}; choose another name")
        if remedy := remedy_of_refusal(status, code):
            return StoreError(f"{location}: {host} refuses these credentials ({status} {code}); {remedy}")
        return StoreError(
            f"{location}: {host} refuses the request ({status} {code}); correct the url, the endpoint or the keys"
        )

    def _has_bucket(self) -> bool:
        """Returns False if the store answers that the bucket does not exist."""
        try:
            answer = self._ask_for_bucket()
        except client_errors():
            return True
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404

    def _ask_for_bucket(self) -> dict[str, Any]:
        """Returns the store's answer, even a refusal. Raises the client's error if there is no answer."""
        from botocore.exceptions import ClientError

        try:
            return self._client().call_s3("head_bucket", Bucket=self.bucket)
        except client_errors() as error:
            for cause in causes(error):
                if isinstance(cause, ClientError):
                    return dict(cause.response)
            raise

    def _host(self) -> str:
        """Returns host:port of the endpoint, without the rest of its url."""
        meta = getattr(getattr(self._client(), "_s3", None), "meta", None)
        parts = urlsplit(meta.endpoint_url if meta else "")
        return f"{parts.hostname}:{parts.port}" if parts.port else (parts.hostname or "the endpoint")

    def _jitter(self) -> random.Random:
        if self._rng is None:
            self._rng = random.Random(os.getpid())
        return self._rng
