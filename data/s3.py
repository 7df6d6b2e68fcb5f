"""A prefix of an S3 bucket through s3fs: the one module that speaks to object stores and that retries.

Objects are read whole: the clients check a whole body against the store's checksum, but return wrong bytes of a ranged
read without a word, and no client retries once a body has begun. So every operation here runs in one loop with a
deadline, on named transient errors; what waiting cannot mend (no bucket, no key, refused credentials, no server) raises
at once, in one sentence. Credentials and endpoint come from the standard environment or profile, are read by the client
library alone, and never reach a log, a message or a pickled store.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data.files import Location, MissingObjectError, Store, StoreError
from data.retries import RetryPolicy
from data.s3_errors import TRANSIENT_CODES, TRANSIENT_STATUS, ShortBodyError, causes, client_errors, passing_errors
from pupujepa.durable import atomic_file

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)


class S3Store(Store):
    """A prefix of a bucket, through s3fs. Clients are made on first use, one per process; the store can be pickled."""

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
                raise ShortBodyError(f"{len(content)} of {length} bytes came")
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
                    raise ShortBodyError(f"{size} of {progress.size} bytes came")
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
            except client_errors() as error:
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

        response = next((e.response for e in causes(error) if isinstance(e, boto.ClientError)), None)
        if response is not None:
            self.reached = True
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", status))
            if status in TRANSIENT_STATUS or code in TRANSIENT_CODES:
                return f"{status} {code}"
            raise self._refusal(status, code, path) from error
        if any(isinstance(e, (boto.NoCredentialsError, boto.PartialCredentialsError)) for e in causes(error)):
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
        if isinstance(error, passing_errors()):
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
        except client_errors() as error:
            answer: dict[str, Any] = next((e.response for e in causes(error) if isinstance(e, ClientError)), {})
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


class _Progress:
    """What s3fs tells while it copies, reduced to the announced length; duck-typed `fsspec.callbacks.Callback`."""

    size: int | None = None

    def set_size(self, size: int | None) -> None:
        self.size = size

    def relative_update(self, increment: int = 1) -> None:
        pass
